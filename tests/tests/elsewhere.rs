//! A gateway that is somewhere else by now (RFC 4555 §3.1; the tunnel is held meanwhile, §3.11).

use std::time::Duration;

use bewick_tests::{Lab, Link, Plan, Realm, lab::ip, scene::with_three};

#[test]
fn a_gateway_whose_name_leads_elsewhere_is_found_while_the_old_tunnel_is_held() {
    let mut plan = Plan::default();
    plan.client_policy.keep_up = true;
    let mut lab = Lab::established(plan);
    let (client, gateway, wan) = (lab.client, lab.gateway, lab.wan);
    // Another machine takes over, at another address; nobody says so but the DNS.
    let fresh = lab.gateway_machine(1);
    lab.world.net.reattach(wan, Realm::Internet, &[ip("192.0.2.77")]);
    lab.world.restart(gateway, fresh);
    lab.world.tell_all();
    lab.world.end_mut(client).machine.set_gateways(vec![ip("192.0.2.77")]);
    let old = lab.sas(client)[0].spis;
    lab.seconds(200);
    assert_eq!(lab.sas(client)[0].spis, old, "held: {}", lab.story());
    lab.seconds(400);
    let now = lab.sas(client);
    assert!(now.iter().any(|sa| sa.state == "established" && sa.spis != old), "{}", lab.story());
    lab.seconds(60);
    assert!(lab.is_up(), "{}", lab.story());
    assert_eq!(lab.sas(client)[0].path.remote.ip(), ip("192.0.2.77"));
}

#[test]
fn a_network_that_comes_back_after_ten_minutes_is_used_again() {
    let mut plan = Plan::default();
    plan.client_policy.keep_up = true;
    let mut lab = Lab::established(plan);
    lab.cut(true);
    lab.seconds(600);
    lab.cut(false);
    lab.seconds(100);
    assert!(lab.is_up(), "{}", lab.story());
}

/// A gateway that was restarted gets a new IKE_SA beside the old one, which stays for the CHILD_SAs that are
/// still to be made; then the address goes that both have: the client begins anew.
#[test]
fn an_address_that_goes_while_one_ike_sa_replaces_another_ends_neither_for_good() {
    let mut plan = with_three();
    plan.client_policy.keep_up = true;
    plan.client.mobike = false;
    let mut lab = Lab::established(plan);
    lab.seconds(1);
    let (client, gateway, uplink) = (lab.client, lab.gateway, lab.wlan);
    let fresh = lab.gateway_machine(1);
    lab.world.restart(gateway, fresh);
    lab.link(Link::of_delay(Duration::from_millis(200)));
    let two = lab.world.run_while_not(Duration::from_secs(60), |world| {
        let sas = world.end(client).machine.host().status();
        sas.filter(|sa| sa.state == "established").count() == 2
    });
    assert!(two, "{}", lab.story());
    lab.world.set_up(uplink, false);
    lab.seconds(60);
    let now = lab.sas(client);
    assert_eq!(now.len(), 1, "{}", lab.story());
    assert_eq!((now[0].state, now[0].children.len()), ("established", 3), "{}", lab.story());
}
