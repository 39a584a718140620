"""Files that can be copied into a repository on the Hub; each needs nothing of this package to run."""
