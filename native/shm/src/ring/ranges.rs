//! A first-fit allocator of byte ranges. It lives in private memory and knows offsets only.

use std::collections::BTreeMap;

/// Ranges begin and end at multiples of this.
const GRAIN: u32 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub offset: u32,
    pub length: u32,
}

#[derive(Debug)]
pub(crate) struct Ranges {
    /// Free ranges, offset to length; neighbours are merged.
    free: BTreeMap<u32, u32>,
}

impl Ranges {
    pub fn new(length: u32) -> Self {
        let mut free = BTreeMap::new();
        if length > 0 {
            free.insert(0, length);
        }
        Ranges { free }
    }

    /// A range of at least `bytes`, or the length of the longest one that could be had.
    pub fn take(&mut self, bytes: usize) -> Result<Range, u32> {
        let largest = |free: &BTreeMap<u32, u32>| free.values().copied().max().unwrap_or(0);
        let Some(length) = rounded(bytes) else {
            return Err(largest(&self.free));
        };
        let Some((&offset, &available)) = self.free.iter().find(|(_, available)| **available >= length) else {
            return Err(largest(&self.free));
        };
        self.free.remove(&offset);
        if available > length {
            self.free.insert(offset + length, available - length);
        }
        Ok(Range { offset, length })
    }

    /// The same range, longer, if what follows it is free.
    pub fn extend(&mut self, range: Range, bytes: usize) -> Option<Range> {
        let length = rounded(bytes)?;
        let more = length.checked_sub(range.length)?;
        let end = range.offset + range.length;
        let available = *self.free.get(&end)?;
        let left = available.checked_sub(more)?;
        self.free.remove(&end);
        if left > 0 {
            self.free.insert(end + more, left);
        }
        Some(Range {
            offset: range.offset,
            length,
        })
    }

    /// The same range, cut to what `bytes` need.
    pub fn shrink(&mut self, range: Range, bytes: usize) -> Range {
        let length = rounded(bytes).map_or(range.length, |length| length.min(range.length));
        if length < range.length {
            self.give_back(Range {
                offset: range.offset + length,
                length: range.length - length,
            });
        }
        Range {
            offset: range.offset,
            length,
        }
    }

    pub fn give_back(&mut self, range: Range) {
        let (mut offset, mut length) = (range.offset, range.length);
        if let Some((&before, &size)) = self.free.range(..offset).next_back()
            && before + size == offset
        {
            self.free.remove(&before);
            offset = before;
            length += size;
        }
        if let Some(size) = self.free.remove(&(offset + length)) {
            length += size;
        }
        self.free.insert(offset, length);
    }
}

fn rounded(bytes: usize) -> Option<u32> {
    u32::try_from(bytes.max(1)).ok()?.checked_next_multiple_of(GRAIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_of_it_comes_back_in_one_piece() {
        let mut ranges = Ranges::new(4 * GRAIN);
        let first = ranges.take(1).unwrap();
        let second = ranges.take(GRAIN as usize + 1).unwrap();
        assert_eq!(second.length, 2 * GRAIN);
        assert_eq!(ranges.take(2 * GRAIN as usize), Err(GRAIN));
        ranges.give_back(first);
        assert_eq!(ranges.extend(second, 3 * GRAIN as usize).unwrap().length, 3 * GRAIN);
        ranges.give_back(Range {
            length: 3 * GRAIN,
            ..second
        });
        assert_eq!(ranges.take(4 * GRAIN as usize).unwrap().length, 4 * GRAIN);
    }

    proptest! {
        #[test]
        fn ranges_never_overlap(steps in prop::collection::vec((any::<bool>(), 1usize..40_000, any::<prop::sample::Index>()), 1..200)) {
            const LENGTH: u32 = 32 * GRAIN;
            let mut ranges = Ranges::new(LENGTH);
            let mut held: Vec<Range> = Vec::new();
            for (take, bytes, which) in steps {
                if take || held.is_empty() {
                    if let Ok(range) = ranges.take(bytes) {
                        prop_assert!(range.length as usize >= bytes && range.offset + range.length <= LENGTH);
                        for other in &held {
                            prop_assert!(range.offset + range.length <= other.offset
                                || other.offset + other.length <= range.offset);
                        }
                        held.push(range);
                    }
                } else {
                    let at = which.index(held.len());
                    let range = held.swap_remove(at);
                    match ranges.extend(range, range.length as usize + bytes) {
                        Some(longer) if bytes % 2 == 0 => held.push(longer),
                        Some(longer) if bytes % 3 == 0 => held.push(ranges.shrink(longer, bytes)),
                        Some(longer) => ranges.give_back(longer),
                        None => ranges.give_back(range),
                    }
                }
            }
            for range in held {
                ranges.give_back(range);
            }
            prop_assert_eq!(ranges.take(LENGTH as usize).map(|range| range.length), Ok(LENGTH));
        }
    }
}
