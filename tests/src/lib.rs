//! Clusters on one machine, for end-to-end tests.
