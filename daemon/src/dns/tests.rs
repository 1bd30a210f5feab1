//! A resolver in a folder of its own, with programs that only write down what they are told.

use std::{
    fs,
    os::unix::fs::symlink,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};

use super::*;

/// A machine of our own: `etc/resolv.conf`, `state`, `bin`, and `told`, where programs write.
struct Machine(PathBuf);

impl Machine {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bewick-dns-{}-{}", std::process::id(), COUNT.fetch_add(1, SeqCst));
        let folder = std::env::temp_dir().join(name);
        for part in ["etc", "bin", "run"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        Machine(folder)
    }

    fn with(text: &str) -> Self {
        let machine = Machine::new();
        fs::write(machine.conf(), text).unwrap();
        machine
    }

    fn conf(&self) -> PathBuf {
        self.0.join("etc/resolv.conf")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.conf()).unwrap()
    }

    /// A program that writes down its arguments and what it reads.
    fn program(&self, name: &str) {
        let path = self.0.join("bin").join(name);
        let told = self.0.join("told");
        let script =
            format!("#!/bin/sh\nread -r line\necho \"{name} $* [$line]\" >>{}\n", told.display());
        // By another process: what this one has open for writing the tests beside would hand on to programs that
        // they start, and meanwhile it could not be run (ETXTBSY).
        let write = "printf %s \"$1\" >\"$0\" && chmod 755 \"$0\"";
        let mut shell = std::process::Command::new("sh");
        assert!(shell.args(["-c", write]).arg(&path).arg(script).status().unwrap().success());
    }

    fn told(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.join("told")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn place(&self) -> Place {
        Place {
            device: "bewick-none".into(),
            resolv_conf: self.conf(),
            state: self.0.join("state"),
            resolved: self.0.join("run"),
            path: self.0.join("bin").into(),
        }
    }

    fn start(&self, means: Means) -> Resolver {
        Resolver::start(means, self.place())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn asked(servers: &[&str], domains: &[&str]) -> Asked {
    Asked {
        servers: servers.iter().map(|server| server.parse().unwrap()).collect(),
        domains: domains.iter().map(|&domain| domain.into()).collect(),
    }
}

/// Waits for something that another task does.
async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

const HOME: &str = "# by hand\nsearch home.example\nnameserver 192.168.1.1\noptions edns0\n";

#[tokio::test]
async fn the_file_names_the_tunnels_servers_while_it_is_up() {
    let machine = Machine::with(HOME);
    let mut resolver = machine.start(Means::Auto);
    resolver.ask(asked(&["10.1.0.53", "fd10::53"], &[]));
    until(|| machine.text().contains("10.1.0.53")).await;
    let text = machine.text();
    let lines: Vec<&str> = text.lines().skip(1).collect();
    let expected =
        ["nameserver 10.1.0.53", "nameserver fd10::53", "search home.example", "options edns0"];
    assert_eq!(lines, expected);
    resolver.ask(Asked::default());
    until(|| machine.text() == HOME).await;
    resolver.ask(asked(&["10.1.0.54"], &["corp.example.com"]));
    until(|| machine.text().contains("nameserver 10.1.0.54\nsearch corp.example.com\noptions"))
        .await;
    resolver.close().await;
    assert_eq!(machine.text(), HOME);
    assert!(!machine.0.join("state/resolv.conf.before").exists());
}

#[tokio::test]
async fn the_next_start_puts_back_what_a_killed_daemon_has_replaced() {
    for link in [false, true] {
        let machine = Machine::new();
        match link {
            true => {
                fs::write(machine.0.join("etc/real"), HOME).unwrap();
                symlink("real", machine.conf()).unwrap();
            }
            false => fs::write(machine.conf(), HOME).unwrap(),
        }
        let resolver = machine.start(Means::File);
        resolver.ask(asked(&["10.1.0.53"], &[]));
        until(|| machine.text().contains("10.1.0.53")).await;
        assert!(!machine.conf().is_symlink());
        // SIGKILL
        resolver.task.abort();
        assert!(resolver.task.await.unwrap_err().is_cancelled());
        let mut next = Resolver::start(Means::Auto, machine.place());
        until(|| machine.text() == HOME).await;
        assert_eq!(machine.conf().is_symlink(), link);
        next.close().await;
        assert_eq!(machine.text(), HOME);
    }
}

/// A machine whose daemon was killed with the file replaced.
async fn killed() -> Machine {
    let machine = Machine::with(HOME);
    let resolver = machine.start(Means::File);
    resolver.ask(asked(&["10.1.0.53"], &[]));
    until(|| machine.text().contains("10.1.0.53")).await;
    resolver.task.abort();
    assert!(resolver.task.await.unwrap_err().is_cancelled());
    machine
}

#[tokio::test]
async fn who_asks_no_servers_puts_back_too_what_a_killed_daemon_has_replaced() {
    let machine = killed().await;
    machine.start(Means::Off).close().await;
    assert_eq!(machine.text(), HOME);
    assert!(!machine.0.join("state/resolv.conf.before").exists());
    let untouched = Machine::with(HOME);
    untouched.start(Means::Off).close().await;
    assert!(!untouched.0.join("state").exists(), "nothing is made where nothing was left");
}

#[tokio::test]
async fn a_file_that_was_half_written_is_put_back() {
    // A file that is mounted can't be replaced whole; the end may come before the first octet, in the midst
    // of ours, or when what was there is half back.
    for half in ["", "# bewick: the tun", "# by hand\nsearch ho"] {
        let machine = killed().await;
        fs::write(machine.conf(), half).unwrap();
        fs::write(machine.0.join("etc/resolv.conf.bewick"), "# bewick: ").unwrap();
        machine.start(Means::File).close().await;
        assert_eq!(machine.text(), HOME, "{half:?}");
        assert!(!machine.0.join("etc/resolv.conf.bewick").exists(), "nor is anything else left");
    }
}

#[tokio::test]
async fn what_another_program_writes_is_what_comes_back() {
    let machine = Machine::with(HOME);
    let mut resolver = machine.start(Means::File);
    resolver.ask(asked(&["10.1.0.53"], &[]));
    until(|| machine.text().contains("10.1.0.53")).await;
    // a DHCP client on the next network
    let cafe = "nameserver 172.16.0.1\n";
    fs::write(machine.0.join("etc/new"), cafe).unwrap();
    fs::rename(machine.0.join("etc/new"), machine.conf()).unwrap();
    until(|| machine.text().contains("10.1.0.53")).await;
    resolver.close().await;
    assert_eq!(machine.text(), cafe);
}

#[tokio::test]
async fn what_was_written_after_a_crash_is_left_alone() {
    let machine = Machine::with(HOME);
    let resolver = machine.start(Means::File);
    resolver.ask(asked(&["10.1.0.53"], &[]));
    until(|| machine.text().contains("10.1.0.53")).await;
    resolver.task.abort();
    assert!(resolver.task.await.is_err());
    fs::write(machine.conf(), "nameserver 9.9.9.9\n").unwrap();
    let mut next = machine.start(Means::File);
    until(|| !machine.0.join("state/resolv.conf.before").exists()).await;
    next.close().await;
    assert_eq!(machine.text(), "nameserver 9.9.9.9\n");
}

#[tokio::test]
async fn no_file_is_no_file_again() {
    let machine = Machine::new();
    let mut resolver = machine.start(Means::File);
    resolver.ask(asked(&["10.1.0.53"], &[]));
    until(|| machine.conf().exists()).await;
    resolver.close().await;
    assert!(!machine.conf().exists());
}

#[tokio::test]
async fn resolved_is_told_for_the_tunnels_device() {
    let machine = Machine::with("nameserver 127.0.0.53\n");
    machine.program("resolvectl");
    let mut resolver = machine.start(Means::Auto);
    resolver.ask(asked(&["10.1.0.53", "fd10::53"], &[]));
    until(|| machine.told().len() == 3).await;
    resolver.ask(asked(&["10.1.0.53"], &["corp.example.com", "lab.example.com"]));
    until(|| machine.told().len() == 6).await;
    resolver.close().await;
    assert_eq!(
        machine.told(),
        [
            "resolvectl dns bewick-none 10.1.0.53 fd10::53 []",
            "resolvectl domain bewick-none ~. []",
            "resolvectl default-route bewick-none yes []",
            "resolvectl dns bewick-none 10.1.0.53 []",
            "resolvectl domain bewick-none ~corp.example.com ~lab.example.com []",
            "resolvectl default-route bewick-none no []",
            "resolvectl revert bewick-none []",
        ]
    );
    assert_eq!(machine.text(), "nameserver 127.0.0.53\n");
}

#[tokio::test]
async fn resolvconf_is_told_and_a_crash_is_mended() {
    let machine = Machine::with(HOME);
    machine.program("resolvconf");
    let resolver = machine.start(Means::Auto);
    resolver.ask(asked(&["10.1.0.53"], &[]));
    let first = "resolvconf -a tun.bewick-none -m 0 -x [nameserver 10.1.0.53]";
    until(|| machine.told() == [first]).await;
    resolver.task.abort();
    assert!(resolver.task.await.is_err());
    let mut next = machine.start(Means::Auto);
    let last = "resolvconf -d tun.bewick-none []";
    until(|| machine.told() == [first, last]).await;
    next.close().await;
    assert_eq!(machine.told().len(), 2);
}

#[test]
fn who_looks_after_the_file_is_asked() {
    let machine = Machine::with(HOME);
    let place = machine.place();
    assert_eq!(place.choose(Means::Auto), Means::File);
    // resolved runs, and nobody asks it
    machine.program("resolvectl");
    assert_eq!(place.choose(Means::Auto), Means::File);
    // systemd's program of that name
    symlink("resolvectl", machine.0.join("bin/resolvconf")).unwrap();
    assert_eq!(place.choose(Means::Auto), Means::File);
    fs::remove_file(machine.0.join("bin/resolvconf")).unwrap();
    machine.program("resolvconf");
    assert_eq!(place.choose(Means::Auto), Means::Resolvconf);
    fs::write(machine.conf(), "nameserver 127.0.0.53\n").unwrap();
    assert_eq!(place.choose(Means::Auto), Means::Resolved);
    fs::remove_file(machine.conf()).unwrap();
    fs::write(machine.0.join("run/resolv.conf"), HOME).unwrap();
    symlink("../run/resolv.conf", machine.conf()).unwrap();
    assert_eq!(place.choose(Means::Auto), Means::Resolved);
    assert_eq!(place.choose(Means::File), Means::File);
}

#[tokio::test]
async fn off_touches_nothing_and_two_daemons_do_not_share() {
    let machine = Machine::with(HOME);
    let mut first = machine.start(Means::File);
    first.ask(asked(&["10.1.0.53"], &[]));
    until(|| machine.text().contains("10.1.0.53")).await;
    let ours = machine.text();
    for means in [Means::Off, Means::File] {
        let mut second = machine.start(means);
        second.ask(asked(&["10.2.0.53"], &[]));
        second.close().await;
        assert_eq!(machine.text(), ours);
    }
    first.close().await;
    assert_eq!(machine.text(), HOME);
}

#[test]
fn rfc_8598_domains_are_for_the_servers_that_come_with_them_and_no_server_is_asked_in_clear() {
    let mut all = Asked::default();
    let inside = |server: IpAddr| server.to_string().starts_with("10.");
    let domains = ["corp.example.com".to_owned(), "bad\nnameserver 8.8.8.8".to_owned()];
    let servers = ["10.1.0.53", "8.8.8.8"].map(|server| server.parse().unwrap());
    let left_out = all.add(&servers, &domains, inside);
    assert_eq!(left_out.len(), 2, "{left_out:?}");
    assert_eq!(all, asked(&["10.1.0.53"], &["corp.example.com"]));
    all.add(&["10.2.0.53".parse().unwrap()], &["lab.example.com".into()], inside);
    assert_eq!(all, asked(&["10.1.0.53", "10.2.0.53"], &["corp.example.com", "lab.example.com"]));
    // one without domains is for everything
    all.add(&["10.3.0.53".parse().unwrap()], &[], inside);
    assert!(all.domains.is_empty());
    all.add(&["10.4.0.53".parse().unwrap()], &["x.example".into()], inside);
    assert!(all.domains.is_empty());
}

#[test]
fn only_a_domain_is_a_domain() {
    for good in ["example.com", "a-b.example.", "_x.example", "com"] {
        assert!(is_domain(good), "{good}");
    }
    for bad in ["", ".", "a b", "-x.example", "a..b", "a\nb", "~.", "ä.example", "a..", ".."] {
        assert!(!is_domain(bad), "{bad}");
    }
}
