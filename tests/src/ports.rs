//! Ports that nobody listens on.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below what systems hand out to outgoing connections.
const FIRST: u16 = 20_000;
const BLOCKS: u16 = 120;
const BLOCK: u16 = 100;

/// A port whose next 99 are free too: clusters count up from it.
pub fn block() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..BLOCKS {
        // Runs side by side start at different places.
        let offset = (std::process::id() % u32::from(BLOCKS)) as u16;
        let number = (NEXT.fetch_add(1, Ordering::Relaxed) + offset) % BLOCKS;
        let base = FIRST + number * BLOCK;
        if (base..base + 60).all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()) {
            return base;
        }
    }
    panic!("no free ports between {FIRST} and {}", FIRST + BLOCKS * BLOCK);
}
