//! What the agent observes of itself: the audit log, device resources.

pub mod audit;
pub mod resources;
