//! Set-up of the tunnel: RFC 7296's two first exchanges, and what of RFC 4555 goes into them.

use bewick_tests::{Lab, Plan, lab::ip};

#[test]
fn smoke() {
    let lab = Lab::established(Plan::default());
    println!("{}", lab.story());
    let child = &lab.children(lab.client)[0];
    assert_eq!(child.virtual_ips, [ip("10.9.0.1")]);
}
