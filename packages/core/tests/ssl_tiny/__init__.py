"""The smallest method package, for the tests of what all method packages share."""
