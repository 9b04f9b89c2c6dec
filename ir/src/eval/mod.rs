//! The reference interpreter: the meaning of a graph.
