//! The fleet side as a whole: a real repository, a real mosquitto, real workers, and what goes wrong between.

mod broker;
mod device;
mod import;
mod link;
mod routing;
mod site;
mod wait;
mod whole;
