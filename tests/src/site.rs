//! One device that no line reaches: versions are signed at the desk and carried to it in a directory.
//!
//! For scenarios that are about models and delegates, not about the network: the path of a version is the
//! normal one (signed, exported, verified, installed, proven), and each step ends when its command does.

use std::path::Path;

use serde_json::Value;

use crate::fleet::path;
use crate::process::Finished;
use crate::{Device, Fleet};

const GROUP: &str = "lab";

pub struct Site {
    pub fleet: Fleet,
    pub device: Device,
}

impl Site {
    /// A fleet and its only device, which is switched on. `configure` may change its configuration before.
    pub fn new(configure: impl FnOnce(&mut Device)) -> Self {
        Self::of(Fleet::without_broker(), configure)
    }

    /// The same, of a fleet that is there already.
    pub fn of(fleet: Fleet, configure: impl FnOnce(&mut Device)) -> Self {
        let mut device = fleet.device("lab-1", GROUP);
        device.without_fleet();
        configure(&mut device);
        device.start();
        Self { fleet, device }
    }

    /// Signs a version for the device; `more` are further arguments of `fleetctl push`.
    pub fn sign(&self, package: &Path, more: &[&str]) -> Finished {
        let push = ["push", path(package), "--group", GROUP, "--offline"];
        self.fleet.fleetctl(&[&push, more].concat())
    }

    /// Carries all that is signed to the device, which has applied or refused it when this returns.
    pub fn carry(&self) -> Finished {
        let stick = self.fleet.export("stick");
        self.device.edgeward(&["import", path(&stick)])
    }

    /// Both, of a package that the device must take.
    pub fn install(&self, package: &Path) {
        self.sign(package, &[]).expect_success();
        self.carry().expect_success();
    }

    /// What serves a model now: version, delegate, refused delegates.
    pub fn active(&self, model: &str) -> Value {
        let status = self.device.model_status(model).expect("a status");
        status["active"].clone()
    }
}
