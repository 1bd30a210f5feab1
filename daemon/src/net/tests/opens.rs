//! What is to be open is open, whoever has closed it and by whatever means.

use std::{
    collections::BTreeSet,
    io::Write,
    process::{Child, ChildStdin, Command, Stdio},
};

use ipnet::IpNet;

use super::{
    super::guard::{Guard, Means},
    hostile::{everything, filters},
    *,
};

/// A program that keeps a table of our name, which nobody else can remove while it runs (NFT_TABLE_F_OWNER).
struct Owner(Child, Option<ChildStdin>);

impl Owner {
    async fn new() -> Self {
        let mut command = Command::new("nft");
        let mut child =
            command.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let stdin = child.stdin.take();
        let mut owner = Owner(child, stdin);
        owner.does("add table inet bewick { flags owner; }");
        until(|| filters().contains("table inet bewick")).await;
        owner
    }

    fn does(&mut self, line: &str) {
        writeln!(self.1.as_mut().unwrap(), "{line}").unwrap();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        drop(self.1.take());
        let _ = self.0.wait();
    }
}

async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[test]
fn nothing_is_said_to_be_open_that_the_packet_filter_keeps_closed() {
    in_namespace(|_| async move {
        let owner = Owner::new().await;
        let error = Routes::release().await.expect_err("the table is still there").to_string();
        assert!(error.contains("open what the kill switch closed"), "{error}");
        let mut routes = Routes::open("bewick0", false, everything(false, false)).await.unwrap();
        let error = routes.shutdown().await.expect_err("at the end of a daemon too").to_string();
        assert!(error.contains("open what the kill switch closed"), "{error}");
        drop(owner);
        Routes::release().await.unwrap();
        assert!(!filters().contains("bewick"));
    });
}

#[test]
fn what_could_not_be_removed_is_tried_again() {
    in_namespace(|_| async move {
        let mut owner = Owner::new().await;
        let mut routes = Routes::open("bewick0", false, everything(false, false)).await.unwrap();
        // Now it can be removed, and is there.
        owner.does("delete table inet bewick");
        owner.does("add table inet bewick");
        owner.does("add chain inet bewick late");
        until(|| filters().contains("late")).await;
        routes.unblock("office").await.unwrap();
        assert!(!filters().contains("bewick"), "{}", filters());
    });
}

#[test]
fn what_either_means_has_left_is_removed_whichever_is_taken_now() {
    in_namespace(|_| async move {
        let nets = BTreeSet::<IpNet>::from(["10.0.0.0/8".parse().unwrap()]);
        for (before, now) in [(&[Means::Xtables], Means::ALL), (&[Means::Nft], &[Means::Xtables])] {
            Guard::new("bewick0", false, before).set(nets.clone()).await.unwrap();
            // The one that has made it is dead.
            let mut guard = Guard::new("bewick0", false, now);
            guard.set(nets.clone()).await.unwrap();
            assert_eq!(filters().matches("10.0.0.0/8").count(), 1, "{}", filters());
            guard.set(BTreeSet::new()).await.unwrap();
            let filters = filters();
            assert!(!filters.contains("bewick") && !filters.contains("BEWICK"), "{filters}");
        }
    });
}
