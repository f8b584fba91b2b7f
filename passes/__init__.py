"""An analysis, and the one pass over images that feeds analyses: collectors, saved states, processes, Ctrl-C."""
