//! Clients that come and go, each with its networks.

use super::*;

/// The CHILD_SA of a client of ours, to these networks.
fn client(id: u64, nets: &[&str]) -> ChildSa {
    let ts = |net: &&str| TrafficSelector::from_net(net.parse().unwrap());
    ChildSa {
        id: ChildId(id),
        ts_local: ["0.0.0.0/0", "::/0"].iter().map(ts).collect(),
        ts_remote: nets.iter().map(ts).collect(),
        virtual_ips: Vec::new(),
        ..sa()
    }
}

/// Makes the tunnel device.
async fn device(handle: &Handle) {
    handle.link().add(LinkVeth::new("bewick0", "b-far").build()).execute().await.unwrap();
    for name in ["bewick0", "b-far"] {
        let up = LinkUnspec::new_with_index(index(handle, name).await).up().build();
        handle.link().set(up).execute().await.unwrap();
    }
}

/// Networks of a client's: of its own, of several clients', of both families, one that takes the link's own
/// addresses along, and the same one twice.
const NETS: [&[&str]; 9] = [
    &["10.9.0.1/32"],
    &["10.9.0.2/32", "2001:db8:9::2/128"],
    &["10.9.0.3/32"],
    &["10.9.0.3/32", "10.20.0.0/16"],
    &["2001:db8:9::4/128"],
    &["2001:db8:9::4/128", "2001:db8:5::/48"],
    &["::/0"],
    &["10.9.0.7/32", "10.9.0.7/32"],
    &["10.20.0.0/16"],
];

#[test]
fn whoever_comes_and_goes_the_kernel_has_what_is_wanted_and_no_more() {
    in_namespace(|handle| async move {
        device(&handle).await;
        let mut routes = Routes::open("bewick0", true, Vec::new()).await.unwrap();
        let mut random = 1_u64;
        for step in 0..300 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let at = (random >> 33) as usize % NETS.len();
            match (random >> 50) % 8 {
                0 => routes.refresh(&[]).await.unwrap(),
                1 => routes.block("office", vec!["10.20.0.0/16".parse().unwrap()]).await.unwrap(),
                2 => routes.unblock("office").await.unwrap(),
                3..=5 => routes.add(&client(at as u64, NETS[at]), &[]).await.unwrap(),
                _ => routes.remove(ChildId(at as u64)).await.unwrap(),
            }
            assert!(routes.is_as_wanted(), "step {step}");
            assert_eq!(count(&handle).await.1, routes.made_routes(), "step {step}");
        }
        for id in 0..NETS.len() as u64 {
            routes.remove(ChildId(id)).await.unwrap();
        }
        routes.unblock("office").await.unwrap();
        assert_eq!(count(&handle).await, (0, 0, 0));
    });
}

#[test]
fn a_client_without_the_device_is_told_so_and_is_no_client_afterwards() {
    in_namespace(|handle| async move {
        device(&handle).await;
        let mut routes = Routes::open("bewick0", true, Vec::new()).await.unwrap();
        routes.add(&client(1, NETS[0]), &[]).await.unwrap();
        let link = index(&handle, "bewick0").await;
        handle.link().del(link).execute().await.unwrap();
        let error = routes.add(&client(2, NETS[2]), &[]).await.unwrap_err();
        assert_eq!(error.to_string(), "find the device bewick0: No such device (os error 19)");
        device(&handle).await;
        routes.refresh(&[]).await.unwrap();
        assert_eq!((routes.is_as_wanted(), count(&handle).await.1), (true, 1));
        routes.add(&client(2, NETS[2]), &[]).await.unwrap();
        assert_eq!((routes.is_as_wanted(), count(&handle).await.1), (true, 2));
    });
}
