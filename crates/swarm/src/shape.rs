//! How a file is cut: pieces, which are verified, of blocks, which travel.

use wire::metainfo::{Info, MAX_PIECES};
use wire::peer::{BLOCK_BYTES, Block};

/// Why a shape is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// There is nothing to distribute.
    #[error("a file of zero bytes cannot be distributed")]
    Empty,
    /// The piece length is zero.
    #[error("a piece length of zero bytes is impossible")]
    NoPieceLength,
    /// More than [`MAX_PIECES`] pieces.
    #[error("{0} pieces exceed the limit of {MAX_PIECES}: use longer pieces")]
    TooManyPieces(u64),
}

/// The cut of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    length: u64,
    piece_length: u32,
    pieces: u32,
}

impl Shape {
    /// A file of `length` bytes in pieces of `piece_length` bytes.
    ///
    /// # Errors
    /// When there is no piece at all, or more than [`MAX_PIECES`].
    pub fn new(length: u64, piece_length: u32) -> Result<Shape, ShapeError> {
        if length == 0 {
            return Err(ShapeError::Empty);
        }
        if piece_length == 0 {
            return Err(ShapeError::NoPieceLength);
        }
        let pieces = length.div_ceil(u64::from(piece_length));
        match u32::try_from(pieces) {
            Ok(pieces) if pieces <= MAX_PIECES => Ok(Shape { length, piece_length, pieces }),
            _ => Err(ShapeError::TooManyPieces(pieces)),
        }
    }

    /// The cut that a torrent describes.
    ///
    /// # Errors
    /// As [`Shape::new`]; never for an `Info` out of a `Metainfo`.
    pub fn of(info: &Info) -> Result<Shape, ShapeError> {
        Shape::new(info.length, info.piece_length)
    }

    /// Bytes of the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes of every piece but the last.
    pub fn piece_length(&self) -> u32 {
        self.piece_length
    }

    /// Number of pieces.
    pub fn pieces(&self) -> u32 {
        self.pieces
    }

    /// Bytes of this piece; 0 beyond the last.
    pub fn piece_bytes(&self, piece: u32) -> u32 {
        let start = u64::from(piece) * u64::from(self.piece_length);
        let left = self.length.saturating_sub(start);
        u32::try_from(left).unwrap_or(u32::MAX).min(self.piece_length)
    }

    /// Number of blocks of this piece.
    pub fn blocks(&self, piece: u32) -> u32 {
        self.piece_bytes(piece).div_ceil(BLOCK_BYTES)
    }

    /// The place of block number `index` of this piece.
    pub fn block(&self, piece: u32, index: u32) -> Block {
        let offset = index * BLOCK_BYTES;
        Block { piece, offset, length: self.piece_bytes(piece).saturating_sub(offset).min(BLOCK_BYTES) }
    }

    /// Whether the place lies within the file and is not empty.
    pub fn contains(&self, block: Block) -> bool {
        block.piece < self.pieces
            && block.length > 0
            && u64::from(block.offset) + u64::from(block.length) <= u64::from(self.piece_bytes(block.piece))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn impossible_shapes_are_refused() {
        assert_eq!(Shape::new(0, 1), Err(ShapeError::Empty));
        assert_eq!(Shape::new(1, 0), Err(ShapeError::NoPieceLength));
        assert_eq!(Shape::new(u64::MAX, 1), Err(ShapeError::TooManyPieces(u64::MAX)));
    }

    #[test]
    fn the_last_piece_and_block_are_short() {
        let shape = Shape::new(100_000, 32 << 10).unwrap();
        assert_eq!((shape.pieces(), shape.piece_bytes(3), shape.piece_bytes(4)), (4, 1696, 0));
        assert_eq!(shape.block(2, 1), Block { piece: 2, offset: 16384, length: 16384 });
        assert_eq!(shape.block(3, 0), Block { piece: 3, offset: 0, length: 1696 });
    }

    proptest! {
        #[test]
        fn blocks_tile_the_file(length in 1u64..3_000_000, piece_length in 1000u32..200_000) {
            let shape = Shape::new(length, piece_length).unwrap();
            let mut sum = 0;
            for piece in 0..shape.pieces() {
                for index in 0..shape.blocks(piece) {
                    let block = shape.block(piece, index);
                    prop_assert!(shape.contains(block));
                    sum += u64::from(block.length);
                }
            }
            prop_assert_eq!(sum, length);
        }

        #[test]
        fn places_outside_are_not_contained(piece in 0u32..9, offset: u32, length: u32) {
            let shape = Shape::new(100_000, 32 << 10).unwrap();
            let end = u64::from(offset) + u64::from(length);
            let inside = length > 0 && end <= u64::from(shape.piece_bytes(piece));
            prop_assert_eq!(shape.contains(Block { piece, offset, length }), inside);
        }
    }
}
