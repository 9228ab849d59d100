//! Four devices of a group that all run the same version, and pushes in waves.

use edgeward_models::manifest::DelegateChoice;
use edgeward_tests::fleet::path;
use edgeward_tests::process::Finished;
use edgeward_tests::{BrokerKind, Device, Fleet, Package, plugin, wait};

pub const GROUP: &str = "radiology";

/// The driver that does what a version's options say.
const NPU: &str = "npu";

pub struct Ward {
    pub fleet: Fleet,
    pub devices: Vec<Device>,
}

impl Ward {
    /// Devices `ward-1`, … on which digits 1.0.0 is active and needs no more watching.
    pub fn new(devices: usize) -> Self {
        let fleet = Fleet::with(BrokerKind::Mosquitto);
        let library = plugin::test_delegate();
        let make = |number: usize| {
            let mut device = fleet.device(&format!("ward-{}", number + 1), GROUP);
            let profile = format!(
                "[delegates.{NPU}]\nlibrary = \"{}\"\n\n[log]",
                library.display()
            );
            device.configure("[log]", &profile);
            device.start();
            device
        };
        let devices = (0..devices).map(make).collect();
        let ward = Self { fleet, devices };
        let first = ward.fleet.package("digits-1.0.0");
        ward.push(&first, &["--no-wait", "--soak", "0"])
            .expect_success();
        ward.wait_all("1.0.0");
        ward
    }

    pub fn push(&self, package: &Package, more: &[&str]) -> Finished {
        let push = ["push", path(package.path()), "--group", GROUP];
        self.fleet.fleetctl(&[&push, more].concat())
    }

    pub fn wait_all(&self, version: &str) {
        for device in &self.devices {
            device.wait_active("digits", version);
        }
    }

    /// The versions that serve, device by device.
    pub fn active(&self) -> Vec<String> {
        let active = |device: &Device| device.active("digits").expect("a status");
        let active = self.devices.iter().map(active);
        active.map(Option::unwrap_or_default).collect()
    }

    /// Waits until the device says this of the watch over its version.
    pub fn wait_soak(&self, device: usize, state: &str) {
        wait::until(&format!("the watch to be {state}"), wait::PATIENCE, || {
            let status = self.devices[device].model_status("digits")?;
            (status["soak"] == state)
                .then_some(())
                .ok_or_else(|| status.to_string())
        });
    }
}

/// The digits as they were, on a driver that behaves like this.
pub fn on_driver(fleet: &Fleet, version: &str, options: &[(&str, &str)]) -> Package {
    let package = fleet.package("digits-1.0.0").version(version);
    package.edit(|manifest| {
        let mut npu = DelegateChoice::new(NPU.parse().expect("a delegate's name"));
        let text = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        npu.options = options.iter().map(text).collect();
        npu.least_share = 0.1;
        manifest.delegates = vec![npu];
    })
}
