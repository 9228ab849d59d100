//! What the whole-system scenarios in `tests/tests` are written with: the real programs, a real broker, real
//! models, real sockets.
//!
//! [`Fleet`] is an operator's desk with a broker; [`Device`] is one agent of it; [`Package`] is a model version
//! made ready to push; [`Site`] is a device that gets its versions by hand; [`Container`] is one with a systemd of
//! its own; [`http`] speaks to an agent's doors; [`reference`] compares its answers with another
//! interpreter's; [`load`] keeps asking while something happens.
//! Everything panics with what was being done when it does not work: a scenario has nothing to do about it.
//! Processes end with the test that started them, and their logs are shown when it fails.

pub mod binaries;
pub mod broker;
pub mod cgroups;
pub mod container;
pub mod departed;
pub mod device;
pub mod disk;
pub mod fleet;
pub mod forge;
pub mod http;
pub mod isolated;
pub mod load;
pub mod overload;
pub mod package;
pub mod planted;
pub mod plugin;
pub mod process;
pub mod publisher;
pub mod python;
pub mod reference;
pub mod relay;
pub mod site;
pub mod small_disk;
pub mod strace;
pub mod wait;

pub use broker::BrokerKind;
pub use container::Container;
pub use device::Device;
pub use fleet::Fleet;
pub use package::Package;
pub use site::Site;
