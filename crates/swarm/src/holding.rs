//! What a peer has: a bitmap only while it is neither nothing nor all.

const WIDTH: usize = usize::BITS as usize;

/// The pieces of a peer.
#[derive(Debug)]
pub(crate) struct Holding {
    pieces: u32,
    count: u32,
    /// Empty when nothing or everything is had.
    words: Box<[usize]>,
}

impl Holding {
    pub(crate) fn nothing(pieces: u32) -> Holding {
        Holding { pieces, count: 0, words: Box::default() }
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn is_full(&self) -> bool {
        self.count == self.pieces
    }

    pub(crate) fn contains(&self, piece: u32) -> bool {
        piece < self.pieces && self.word(piece as usize / WIDTH) & (1 << (piece as usize % WIDTH)) != 0
    }

    /// The pieces of one machine word, the lowest piece in the lowest bit.
    /// Bits beyond the last piece have no meaning.
    pub(crate) fn word(&self, at: usize) -> usize {
        match self.words.get(at) {
            Some(word) => *word,
            None if self.is_full() => usize::MAX,
            None => 0,
        }
    }

    /// Adds a piece, which must exist, and says whether it is new.
    pub(crate) fn insert(&mut self, piece: u32) -> bool {
        if piece >= self.pieces || self.contains(piece) {
            return false;
        }
        if self.words.is_empty() {
            self.words = vec![0; (self.pieces as usize).div_ceil(WIDTH)].into();
        }
        self.words[piece as usize / WIDTH] |= 1 << (piece as usize % WIDTH);
        self.count += 1;
        if self.is_full() {
            self.words = Box::default();
        }
        true
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.pieces).filter(|&piece| self.contains(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_holding_needs_no_memory() {
        let mut holding = Holding::nothing(70);
        assert!(!holding.contains(0) && holding.word(0) == 0);
        for piece in 0..70 {
            assert!(holding.insert(piece) && !holding.insert(piece));
            assert!(holding.contains(piece));
        }
        assert!(holding.is_full() && holding.words.is_empty() && !holding.insert(70));
        assert_eq!(holding.iter().count(), 70);
        assert_eq!(Holding::nothing(3).iter().count(), 0);
    }
}
