"""Jobs of tests/ranks_driver.py that are no whole runs: what they print, test_distributed.py reads."""
