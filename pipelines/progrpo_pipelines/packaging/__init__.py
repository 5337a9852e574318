"""From a pipeline to a package for a cluster: placement, target, presets, compiling."""
