//! What fleetctl and agents say to each other: topics, desired state, routing, statuses, telemetry.

pub mod claim;
pub mod enrolment;
pub mod health;
pub mod history;
pub mod removal;
pub mod rollout;
pub mod routing;
pub mod signed;
pub mod status;
pub mod telemetry;
pub mod topic;
pub mod waves;
