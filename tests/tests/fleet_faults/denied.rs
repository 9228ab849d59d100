//! A broker whose access list does not know the device.

use edgeward_tests::{BrokerKind, Fleet, wait};

#[test]
fn what_the_broker_denies_is_said_and_works_as_soon_as_it_is_permitted() {
    let mut fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    ward.configure("[log]\n", "[telemetry]\ninterval_seconds = 1\n\n[log]\n");
    // The operator may do everything, devices nothing.
    let permitted = fleet
        .broker()
        .permit(|list| list.replace("\npattern ", "\n# pattern "));
    fleet.push_sample("digits-1.0.0", "radiology");
    ward.start();
    let topics = ["online", "status", "telemetry"];
    ward.wait_warnings("each denied topic to be named", |warnings| {
        topics.iter().all(|topic| {
            let topic =
                format!("refused to take a message for edgeward/v1/hospital/device/ward-1/{topic}");
            let mut named = warnings.iter();
            named.any(|w| w.contains(&topic) && w.contains("access control"))
        })
    });
    let shown = ward.edgeward(&["status"]).expect_success();
    assert!(shown.contains("warning   the broker refused"), "{shown}");
    // mosquitto confirms the subscription and sends nothing: as if nothing were there.
    ward.wait_refusal(
        "digits",
        &["timestamp.json", "may not read it", "access list"],
    );
    let table = fleet.fleetctl(&["status"]).expect_success();
    assert!(table.contains("has not spoken yet"), "{table}");

    // On the connection that is up, without a restart of anything.
    fleet.broker().permit(|_| permitted.clone());
    ward.wait_active("digits", "1.0.0");
    ward.wait_warnings("nothing to be denied any more", |warnings| {
        !warnings.iter().any(|w| w.contains("refused"))
    });
    wait::until("the operator to hear of it", wait::PATIENCE, || {
        let status = fleet.status();
        let device = &status["devices"][0];
        let active = &device["status"]["models"][0]["active"]["version"];
        (active == "1.0.0" && device["online"] == true)
            .then_some(())
            .ok_or_else(|| status.to_string())
    });
}
