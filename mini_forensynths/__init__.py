"""A small benchmark in the ForenSynths layout from photographs and simulated generators."""
