//! What the agent observes of itself: the audit log, who asked for what, metrics, device resources.

pub mod audit;
pub mod inference;
pub mod metrics;
pub mod page;
pub mod resources;
pub mod usage;
