//! Local users at the Unix socket.

use crate::device::Device;

fn own_user() -> u32 {
    rustix::process::getuid().as_raw()
}

#[tokio::test]
async fn a_user_that_is_not_listed_gets_403_for_everything() {
    let device = Device::start(|config| {
        config.unix.allow_users = vec![(own_user() + 4711).to_string()];
        config.unix.allow_groups = vec!["4000000".to_owned()];
    })
    .await;
    for path in [
        "/v2/health/live",
        "/v2/models/digits/infer",
        "/metrics",
        "/",
    ] {
        let mut client = device.client().await;
        let reply = client.get(path).await;
        assert_eq!(reply.status, 403, "{path}");
        assert!(reply.error().contains(&format!("user {}", own_user())));
        assert!(client.reply().await.is_none(), "the connection is closed");
    }
    device.close().await;
}

#[tokio::test]
async fn a_listed_user_or_group_is_let_in() {
    let group = rustix::process::getgid().as_raw().to_string();
    for (users, groups) in [
        (vec![own_user().to_string()], vec![]),
        (vec![], vec![group]),
    ] {
        let device = Device::start(|config| {
            config.unix.allow_users = users;
            config.unix.allow_groups = groups;
        })
        .await;
        assert_eq!(device.client().await.get("/v2").await.status, 200);
        device.close().await;
    }
}
