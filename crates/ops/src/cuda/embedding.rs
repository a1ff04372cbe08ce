//! Rows of a table by id, and images and videos cut into patches, on a device.

use candle_core::Result;

use super::launch::{Arg, Array, Launch, Machine, axis, symbol};
use super::{DeviceOp, Kept, Made};
use crate::embedding::Embedding;
use crate::patches::Patches;

/// Places of equal ids, so that one block adds up one row of the table, in the order of the places.
struct Segments {
    /// Places, sorted by their id and then by themselves.
    order: Vec<u32>,
    /// The distinct ids.
    ids: Vec<u32>,
    /// Where each id's places start in `order`, and the end.
    starts: Vec<u32>,
}

fn segments(ids: &[u32]) -> Segments {
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|&place| ids[place as usize]);
    let (mut distinct, mut starts) = (Vec::new(), Vec::new());
    for (at, &place) in order.iter().enumerate() {
        let id = ids[place as usize];
        if distinct.last() != Some(&id) {
            distinct.push(id);
            starts.push(at as u32);
        }
    }
    starts.push(order.len() as u32);
    Segments { order, ids: distinct, starts }
}

impl DeviceOp<1> for Embedding {
    fn device_forward<M: Machine>(
        &self,
        machine: &M,
        [table]: [Array<'_, M::Buffer>; 1],
        _kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        let (n, width) = (self.ids.len(), table.width());
        let ids = machine.upload(&self.ids)?;
        let mut out = machine.alloc(table.dtype, n * width)?;
        let args = &mut [table.arg(), Arg::In(&ids, 0), Arg::Out(&mut out), Arg::count(n), Arg::size(width)?];
        machine.launch(&symbol("embedding", table.dtype), Launch::each(n * width), args)?;
        Made::new(out, self.dims.as_slice())
    }

    fn device_backward<M: Machine>(
        &self,
        machine: &M,
        [table]: [Array<'_, M::Buffer>; 1],
        _out: Array<'_, M::Buffer>,
        grad: Array<'_, M::Buffer>,
        _needs: [bool; 1],
        _kept: &Kept,
    ) -> Result<[Option<M::Buffer>; 1]> {
        let width = table.width();
        let Segments { order, ids, starts } = segments(&self.ids);
        let mut sums = machine.zeros(table.dtype, table.len())?;
        let launch = Launch::new([axis(ids.len())?, axis(width.div_ceil(128))?, 1], 256);
        let segments = Arg::size(ids.len())?;
        let (order, starts, ids) = (machine.upload(&order)?, machine.upload(&starts)?, machine.upload(&ids)?);
        let args = &mut [
            grad.arg(),
            Arg::In(&order, 0),
            Arg::In(&starts, 0),
            Arg::In(&ids, 0),
            Arg::Out(&mut sums),
            segments,
            Arg::size(width)?,
        ];
        machine.launch(&symbol("embedding_grad", table.dtype), launch, args)?;
        Ok([Some(sums)])
    }
}

impl Patches {
    fn device_move<M: Machine>(
        &self,
        machine: &M,
        from: Array<'_, M::Buffer>,
        inverse: bool,
    ) -> Result<M::Buffer> {
        let n = from.len();
        let ([channels, frames, height, width], [tubelet, patch_h, patch_w]) = (self.size, self.patch);
        let mut to = machine.alloc(from.dtype, n)?;
        let mut args = vec![from.arg(), Arg::Out(&mut to), Arg::count(n)];
        for size in [channels, frames, height, width, tubelet, patch_h, patch_w] {
            args.push(Arg::size(size)?);
        }
        args.push(Arg::I32(inverse.into()));
        machine.launch(&symbol("patchify", from.dtype), Launch::each(n), &mut args)?;
        drop(args);
        Ok(to)
    }
}

impl DeviceOp<1> for Patches {
    fn device_forward<M: Machine>(
        &self,
        machine: &M,
        [x]: [Array<'_, M::Buffer>; 1],
        _kept: &Kept,
    ) -> Result<Made<M::Buffer>> {
        let width = self.size[0] * self.patch.iter().product::<usize>();
        Made::new(self.device_move(machine, x, false)?, (x.dims[0], self.tokens, width))
    }

    fn device_backward<M: Machine>(
        &self,
        machine: &M,
        _args: [Array<'_, M::Buffer>; 1],
        _out: Array<'_, M::Buffer>,
        grad: Array<'_, M::Buffer>,
        _needs: [bool; 1],
        _kept: &Kept,
    ) -> Result<[Option<M::Buffer>; 1]> {
        Ok([Some(self.device_move(machine, grad, true)?)])
    }
}

#[cfg(test)]
mod tests {
    use super::segments;

    #[test]
    fn places_of_equal_ids_stand_together_in_their_order() {
        let found = segments(&[7, 2, 7, 0, 2, 7]);
        assert_eq!(found.order, [3, 1, 4, 0, 2, 5]);
        assert_eq!((found.ids, found.starts), (vec![0, 2, 7], vec![0, 1, 3, 6]));
        let empty = segments(&[]);
        assert!(empty.ids.is_empty() && empty.starts == [0]);
    }
}
