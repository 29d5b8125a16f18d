//! Accounts of bytes.
//!
//! A [`Budget`] counts what its [`Charge`]s hold. A charge gives its bytes back when it is dropped, and it travels with
//! the memory: the last mapping to go takes it along, so memory that a view keeps alive stays counted.

use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
struct Account {
    // Counters that nothing else is ordered by: Relaxed everywhere. The compare-and-swap alone keeps the limit.
    used: AtomicU64,
    charges: AtomicU64,
    closing: AtomicU64,
}

#[derive(Debug, Clone, Default)]
pub struct Budget {
    account: Arc<Account>,
}

impl Budget {
    pub fn new() -> Self {
        Budget::default()
    }

    /// Bytes charged, and the number of charges.
    pub fn usage(&self) -> (u64, u64) {
        (
            self.account.used.load(Ordering::Relaxed),
            self.account.charges.load(Ordering::Relaxed),
        )
    }

    /// Bytes that the reaper is about to give back.
    pub fn closing(&self) -> u64 {
        self.account.closing.load(Ordering::Relaxed)
    }

    /// Takes `bytes` if no more than `limit` are then used. Atomic: two callers never both get the last bytes.
    pub fn charge(&self, bytes: u64, limit: u64) -> Result<Charge> {
        let taken = self
            .account
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= limit)
            });
        match taken {
            Ok(_) => {
                self.account.charges.fetch_add(1, Ordering::Relaxed);
                Ok(Charge {
                    account: Arc::clone(&self.account),
                    bytes,
                })
            }
            Err(used) => Err(Error::MemoryLimit {
                used,
                asked: bytes,
                limit,
                closing: self.closing(),
            }),
        }
    }
}

/// Bytes taken out of a budget until it is dropped.
#[derive(Debug)]
pub struct Charge {
    account: Arc<Account>,
    bytes: u64,
}

impl Charge {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Says that the bytes come back soon; ends with the mark.
    pub(crate) fn mark_closing(self: &Arc<Self>) -> ClosingMark {
        self.account.closing.fetch_add(self.bytes, Ordering::Relaxed);
        ClosingMark {
            charge: Arc::clone(self),
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.account.charges.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Keeps a charge counted as closing.
#[derive(Debug)]
pub(crate) struct ClosingMark {
    charge: Arc<Charge>,
}

impl Drop for ClosingMark {
    fn drop(&mut self) {
        self.charge
            .account
            .closing
            .fetch_sub(self.charge.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_comes_back() {
        let budget = Budget::new();
        let first = budget.charge(60, 100).unwrap();
        assert_eq!(
            budget.charge(41, 100).unwrap_err(),
            Error::MemoryLimit {
                used: 60,
                asked: 41,
                limit: 100,
                closing: 0
            }
        );
        let second = budget.charge(40, 100).unwrap();
        assert_eq!(budget.usage(), (100, 2));
        drop((first, second));
        assert_eq!(budget.usage(), (0, 0));
    }

    #[test]
    fn a_sum_that_overflows_is_refused() {
        let budget = Budget::new();
        let _held = budget.charge(10, 100).unwrap();
        assert!(matches!(
            budget.charge(u64::MAX, u64::MAX),
            Err(Error::MemoryLimit { .. })
        ));
    }

    #[test]
    fn callers_in_parallel_never_pass_the_limit() {
        let budget = Budget::new();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..500).filter_map(|_| budget.charge(1, 777).ok()).collect::<Vec<_>>()))
                .collect();
            let held: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
            assert_eq!(held.iter().map(Vec::len).sum::<usize>(), 777);
            assert_eq!(budget.usage(), (777, 777));
        });
        assert_eq!(budget.usage(), (0, 0));
    }
}
