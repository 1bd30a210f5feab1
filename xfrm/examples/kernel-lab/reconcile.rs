//! A plane that was killed, and a kernel that has not what it should.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use bewick_ike::{ChildId, ChildMove, ChildSa, EspSpi, EspSuite};
use bewick_xfrm::{
    DataPlane, PlaneEvent, Reconciled, Trap, TrapId,
    kernel::{Config, KernelPlane},
};

use tokio::sync::mpsc::Receiver;

use super::{
    host::{A0, A1, B0, Result, check, ip, larval_drop, net, path, ping, policies, states},
    pair::{BEST, CHILD, Host, Pair, child},
};

/// The argument with which this program is the plane that is killed.
pub const VICTIM: &str = "victim";

/// CHILD_SAs of the plane that is killed.
const CHILDREN: u32 = 10;

/// Events of which the socket holds some 6,500.
const OVERFLOW: usize = 10_000;

const GCM: EspSuite = EspSuite::AesGcm16 { key_bits: 128 };

/// A plane that is killed in the middle of moving leaves all it had; the next one removes that, and
/// nothing of others.
pub fn killed(runtime: &tokio::runtime::Runtime) -> Result<()> {
    println!("-- killed");
    others()?;
    for flush in [false, true, false] {
        let program = std::env::current_exe()?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", "a"]).arg(program).arg(VICTIM);
        let mut victim = command.stdout(Stdio::piped()).spawn()?;
        let mut ready = String::new();
        BufReader::new(victim.stdout.take().ok_or("no pipe")?).read_line(&mut ready)?;
        check(ready.trim() == "ready", "the victim runs")?;
        thread::sleep(Duration::from_millis(150));
        victim.kill()?;
        victim.wait()?;
        let (left, policies_left) = (states("a")? - 1, policies("a")? - 1);
        let list = ip(&["-n", "a", "xfrm", "policy", "list", "nosock"])?;
        let held = list.matches("tmpl").count() - 1 - policies_left;
        println!(
            "killed: {left} states and {policies_left} policies are left, {held} of these hold packets"
        );
        check(left >= 2 * CHILDREN as usize - 1, "a killed plane clears nothing up")?;
        check(policies_left == 3 * CHILDREN as usize + 1, "nor its policies and its trap")?;
        if flush {
            // Policies alone would have their packets wait for nobody.
            ip(&["-n", "a", "xfrm", "state", "flush"])?;
            others_state()?;
        }
        let mut pair = Pair::open(runtime, BEST)?;
        check(states("a")? == 1 && policies("a")? == 1, "what it has left goes, others' stays")?;
        if flush && held == 0 {
            // Nothing is left that would tell of packets that wait.
            ip(&["netns", "exec", "a", "sysctl", "-qw", "net.core.xfrm_larval_drop=1"])?;
        }
        check(larval_drop("a")? == "1", "the kernel is as before the hold")?;
        pair.install(runtime, GCM, (path(A0, 4500, B0, 4500), false))?;
        check(ping(5)? == 0, "the new ones work")?;
        runtime.block_on(pair.a.shutdown())?;
        runtime.block_on(pair.b.shutdown())?;
        check(states("a")? == 1 && policies("a")? == 1, "others' stays at the end too")?;
    }
    forget_others()
}

/// Installs and moves until it is killed.
pub fn victim(runtime: &tokio::runtime::Runtime) -> Result<()> {
    let _guard = runtime.enter();
    let mut plane = KernelPlane::new(Config { reason: "lab".into(), ..Config::default() })?;
    let place = (path(A0, 4500, B0, 4500), false);
    for number in 0..CHILDREN {
        let sa = ChildSa {
            id: ChildId(u64::from(number) + 1),
            reqid: number + 1,
            spi_in: EspSpi(0x1000_0000 + number),
            spi_out: EspSpi(0x2000_0000 + number),
            ts_remote: vec![net(&format!("10.64.0.{number}/32"))],
            ..child(GCM, place, Host::A)
        };
        runtime.block_on(plane.install(&sa))?;
    }
    let (ts_local, ts_remote) = (vec![net("10.0.1.1/32")], vec![net("10.65.0.0/16")]);
    runtime.block_on(plane.set_trap(&Trap { id: TrapId(0), ts_local, ts_remote, if_id: None }))?;
    println!("ready");
    for local in [A1, A0].into_iter().cycle() {
        let to = path(local, 4500, B0, 4500);
        let one = |id| ChildMove { id: ChildId(id), path: to, encap: false };
        let moves: Vec<ChildMove> = (1..=u64::from(CHILDREN)).map(one).collect();
        runtime.block_on(plane.move_children(&moves))?;
    }
    Ok(())
}

/// What others take away or add is put right, and what is theirs stays.
pub fn differences(runtime: &tokio::runtime::Runtime) -> Result<()> {
    println!("-- reconcile");
    others()?;
    let mut pair = Pair::open(runtime, BEST)?;
    pair.install(runtime, GCM, (path(A0, 4500, B0, 4500), false))?;
    let mut events = pair.a.take_events().ok_or("no events")?;
    let found = runtime.block_on(pair.a.reconcile())?;
    check(found == Reconciled::default(), "what is right is left alone")?;
    // Also while an old inbound state is there for packets in flight, and when it has ended.
    let to = |local| ChildMove { id: CHILD, path: path(local, 4500, B0, 4500), encap: false };
    runtime.block_on(pair.a.move_children(&[to(A1)]))?;
    let found = runtime.block_on(pair.a.reconcile())?;
    check(found == Reconciled::default() && states("a")? == 4, "after a move too")?;
    runtime.block_on(pair.a.move_children(&[to(A0)]))?;

    for (from, to, direction) in
        [("10.0.1.1/32", "10.0.2.1/32", "out"), ("10.0.2.1/32", "10.0.1.1/32", "in")]
    {
        ip(&["-n", "a", "xfrm", "policy", "delete", "src", from, "dst", to, "dir", direction])?;
    }
    state("192.0.2.77", "0x7001", &["output-mark", "0xbe1c"])?;
    let found = runtime.block_on(pair.a.reconcile())?;
    println!("{found:?}");
    check(found == Reconciled { removed: 1, restored: 2, incomplete: 0 }, "it is put right")?;
    check(ping(5)? == 0 && policies("a")? == 4, "and works")?;

    // A state that is gone can't be made again: its numbers are not known.
    let out = ["dst", B0, "proto", "esp", "spi", "0xc0000002"];
    ip(&[&["-n", "a", "xfrm", "state", "delete"], &out[..]].concat())?;
    let found = runtime.block_on(pair.a.reconcile())?;
    check(found == Reconciled { incomplete: 1, ..Reconciled::default() }, "a state is missed")?;
    let patience = Duration::from_secs(10);
    let mut told = Some(PlaneEvent::Disturbed);
    while told == Some(PlaneEvent::Disturbed) {
        let next = async { tokio::time::timeout(patience, events.recv()).await };
        told = runtime.block_on(next)?;
    }
    let expected = PlaneEvent::Expire { id: CHILD, hard: true };
    check(told == Some(expected), "a successor is asked for")?;
    runtime.block_on(pair.a.shutdown())?;
    runtime.block_on(pair.b.shutdown())?;
    check(states("a")? == 1 && policies("a")? == 1, "others' has stayed")?;
    forget_others()
}

/// What others flush is noticed: policies are put back, and a CHILD_SA without states is made anew.
pub fn flushed(runtime: &tokio::runtime::Runtime) -> Result<()> {
    println!("-- flushed by others");
    let mut pair = Pair::open(runtime, BEST)?;
    pair.install(runtime, GCM, (path(A0, 4500, B0, 4500), false))?;
    let mut events = pair.a.take_events().ok_or("no events")?;
    let next = |events: &mut Receiver<PlaneEvent>| -> Result<Option<PlaneEvent>> {
        let patience = Duration::from_secs(10);
        Ok(runtime.block_on(async { tokio::time::timeout(patience, events.recv()).await })?)
    };
    // What we remove ourselves is no news, and neither is what others do with theirs.
    pair.go(runtime, (path(A1, 4500, B0, 4500), false))?;
    pair.go(runtime, (path(A0, 4500, B0, 4500), true))?;
    others_state()?;
    ip(&[
        "-n",
        "a",
        "xfrm",
        "state",
        "delete",
        "dst",
        "203.0.113.2",
        "proto",
        "esp",
        "spi",
        "0x5001",
    ])?;

    ip(&["-n", "a", "xfrm", "policy", "flush"])?;
    check(next(&mut events)? == Some(PlaneEvent::Disturbed), "flushed policies are noticed")?;
    let found = runtime.block_on(pair.a.reconcile())?;
    println!("policies flushed: {found:?}");
    check(found == Reconciled { restored: 3, ..Reconciled::default() }, "and put back")?;
    check(ping(5)? == 0, "and work")?;
    let one = ["src", "10.0.2.1/32", "dst", "10.0.1.1/32", "dir", "in"];
    ip(&[&["-n", "a", "xfrm", "policy", "delete"], &one[..]].concat())?;
    check(next(&mut events)? == Some(PlaneEvent::Disturbed), "so is a single one")?;
    let found = runtime.block_on(pair.a.reconcile())?;
    check(found == Reconciled { restored: 1, ..Reconciled::default() }, "and put back too")?;

    ip(&["-n", "a", "xfrm", "state", "flush"])?;
    check(next(&mut events)? == Some(PlaneEvent::Disturbed), "flushed states are noticed")?;
    let found = runtime.block_on(pair.a.reconcile())?;
    println!("states flushed: {found:?}");
    check(found == Reconciled { incomplete: 1, ..Reconciled::default() }, "and missed")?;
    let expected = PlaneEvent::Expire { id: CHILD, hard: true };
    check(next(&mut events)? == Some(expected), "a successor is asked for")?;
    // What IKE does then.
    for (plane, host) in [(&mut pair.a, Host::A), (&mut pair.b, Host::B)] {
        let mut heir = child(GCM, (path(A0, 4500, B0, 4500), true), host);
        let (low, high) = (EspSpi(0xd000_0001), EspSpi(0xd000_0002));
        (heir.spi_in, heir.spi_out) = if host == Host::A { (low, high) } else { (high, low) };
        heir.id = ChildId(2);
        runtime.block_on(plane.install(&heir))?;
        runtime.block_on(plane.remove(CHILD))?;
    }
    check(ping(5)? == 0, "the successor works")?;
    check(runtime.block_on(pair.a.reconcile())? == Reconciled::default(), "nothing is amiss")?;
    check(events.try_recv().is_err(), "and nothing else is told")?;
    pair.close(runtime)
}

/// More events than the socket holds: what they would have said is found by comparing.
pub fn overflow() -> Result<()> {
    println!("-- more events than there is room for");
    // Nobody reads the socket but while this runtime is made to run.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut pair = Pair::open(&runtime, BEST)?;
    pair.install(&runtime, GCM, (path(A0, 4500, B0, 4500), false))?;
    let mut events = pair.a.take_events().ok_or("no events")?;
    let name = "dst 203.0.113.2 proto esp spi 0x5001";
    let key = "0x0102030405060708090a0b0c0d0e0f1011121314 128";
    let both = format!(
        "xfrm state add src {A0} {name} mode tunnel aead rfc4106(gcm(aes)) {key}\n\
         xfrm state delete {name}\n"
    );
    let mut batch =
        Command::new("ip").args(["-n", "a", "-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    batch.stdin.take().ok_or("no pipe")?.write_all(both.repeat(OVERFLOW).as_bytes())?;
    check(batch.wait()?.success(), "others add and delete")?;
    let out = ["dst", B0, "proto", "esp", "spi", "0xc0000002"];
    ip(&[&["-n", "a", "xfrm", "state", "delete"], &out[..]].concat())?;
    let patience = Duration::from_secs(10);
    let mut next = || -> Result<Option<PlaneEvent>> {
        Ok(runtime.block_on(async { tokio::time::timeout(patience, events.recv()).await })?)
    };
    check(next()? == Some(PlaneEvent::EventsLost), "the loss of events is told")?;
    let found = runtime.block_on(pair.a.reconcile())?;
    println!("after {OVERFLOW} events that nobody read: {found:?}");
    check(found == Reconciled { incomplete: 1, ..Reconciled::default() }, "a state is missed")?;
    let expected = PlaneEvent::Expire { id: CHILD, hard: true };
    check(next()? == Some(expected), "a successor is asked for")?;
    pair.close(&runtime)
}

/// A state and a policy that are not ours, with a reqid that we use too.
fn others() -> Result<()> {
    others_state()?;
    let selector = ["src", "10.77.0.0/16", "dst", "10.78.0.0/16", "dir", "out"];
    let template = ["tmpl", "src", A0, "dst", "203.0.113.2", "proto", "esp", "reqid", "7"];
    let mode = ["mode", "tunnel"];
    ip(&[&["-n", "a", "xfrm", "policy", "add"], &selector[..], &template, &mode].concat())?;
    Ok(())
}

fn others_state() -> Result<()> {
    state("203.0.113.2", "0x5001", &[])
}

fn state(to: &str, spi: &str, more: &[&str]) -> Result<()> {
    let what =
        ["-n", "a", "xfrm", "state", "add", "src", A0, "dst", to, "proto", "esp", "spi", spi];
    let how = ["reqid", "7", "mode", "tunnel", "aead", "rfc4106(gcm(aes))"];
    let key = ["0x0102030405060708090a0b0c0d0e0f1011121314", "128"];
    ip(&[&what[..], &how, &key, more].concat())?;
    Ok(())
}

fn forget_others() -> Result<()> {
    ip(&["-n", "a", "xfrm", "state", "flush"])?;
    ip(&["-n", "a", "xfrm", "policy", "flush"])?;
    Ok(())
}
