use nbd::MemSource;

use super::*;

#[test]
fn the_first_touch_of_a_chunk_counts_whichever_way_it_is_read() {
    let watch = Arc::new(Watch::new(100 << 20));
    let volume = MemSource::new(100 << 20);
    volume.write_at(70 << 20, &[1; 4096]).unwrap();
    let watched = Watched::new(Arc::new(volume), watch.clone());
    let mut buf = [0; 4096];
    watched.read_at(9 << 20, &mut buf).unwrap();
    assert!(
        watched
            .lend(Extent {
                offset: 70 << 20,
                len: 512
            })
            .is_some()
    );
    assert!(watched.try_read_at((3 << 20) - 10, &mut buf).unwrap());
    watched.read_at(9 << 20, &mut buf).unwrap();
    watched.write_at(50 << 20, &buf).unwrap();
    let touched: Vec<u64> = watch.touched(0).iter().map(|chunk| chunk.get()).collect();
    assert_eq!(touched, [9, 70, 2, 3]);
    assert_eq!(
        (watch.touched(3).len(), watch.touched(9).len(), watch.touches()),
        (1, 0, 4)
    );
    assert_eq!(watch.take_waits().count(), 2, "reads that may wait");
}

#[test]
fn touches_are_bounded() {
    let chunks = TOUCHES_MAX as u64 + 100;
    let watch = Watch::new(chunks << 20);
    watch.touch(Extent {
        offset: 0,
        len: chunks << 20,
    });
    assert_eq!(watch.touches(), TOUCHES_MAX);
    // Behind the end there is nothing to remember.
    watch.touch(Extent {
        offset: u64::MAX - (2 << 20),
        len: 1 << 20,
    });
}
