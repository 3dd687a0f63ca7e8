"""The `spfde.topology` methods, one file each."""
