//! The tree that guests see.
