//! Functions of the NIF API that this host does not have yet: a call of one marks the call of the library, whose answer
//! is then an error that names it.

use std::cell::Cell;

thread_local! {
    static CALLED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// The library called `symbol`, which is not there. The first one is the one that is told.
#[cold]
pub fn called(symbol: &'static str) {
    CALLED.with(|called| called.set(called.get().or(Some(symbol))));
}

/// What was called since this was asked last.
#[inline]
pub fn taken() -> Option<&'static str> {
    CALLED.with(Cell::take)
}
