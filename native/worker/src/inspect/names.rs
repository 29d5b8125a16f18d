//! How much of a file's names is kept. They may overlap there, so that a small file has many long ones: each symbol names a place in one
//! string, and nothing forbids that all are in the same.

/// Bytes of names and of what it takes to keep them. Libraries with a hundred thousand symbols have a third of this.
const MOST: usize = 24 << 20;
/// For a string, and its place in a map.
const EACH: usize = 96;

#[derive(Debug)]
pub struct Names {
    left: usize,
}

impl Default for Names {
    fn default() -> Self {
        Self { left: MOST }
    }
}

impl Names {
    /// The name, to keep; none: that would be too many.
    pub fn keep(&mut self, name: &str) -> Option<String> {
        self.left = self.left.checked_sub(name.len().checked_add(EACH)?)?;
        Some(name.to_owned())
    }
}
