//! Collectives between the ranks of a group.
