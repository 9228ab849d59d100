//! One file per verb of `edgeward`.

pub mod audit;
pub mod check_config;
pub mod enroll;
pub mod import;
pub mod route;
pub mod serve;
pub mod status;
pub mod telemetry;
pub mod token;
pub mod usage;
pub mod worker;
