//! Names, pools and the order of eviction.

use std::collections::BTreeMap;

use super::hash::{BlockHash, HashChain};
use super::pool::Prefix;
use super::{Name, Pool, pools};

/// The chain of a prompt in blocks of two.
fn chain(tokens: &[u32]) -> HashChain {
    let mut chain = HashChain::new(BlockHash::root("", None, None));
    chain.extend(tokens, 2);
    chain
}

/// Takes blocks for `tokens`, fills them and names them.
fn filled(pool: &mut Pool, tokens: &[u32]) -> Vec<u32> {
    let chain = chain(tokens);
    let blocks = pool.take(chain.hashes().len()).expect("room");
    for (index, block) in blocks.iter().enumerate() {
        pool.name(
            *block,
            Name { hash: chain.hashes()[index], parent: chain.parent(index), position: index * 2 },
        );
    }
    blocks
}

fn found(pool: &Pool, tokens: &[u32]) -> usize {
    pool.find(chain(tokens).hashes()).blocks.len()
}

#[test]
fn a_block_is_called_by_everything_before_it() {
    let one = chain(&[1, 2, 3, 4, 5]);
    assert_eq!(one.hashes().len(), 2, "only full blocks");
    let longer = chain(&[1, 2, 3, 4, 5, 6]);
    assert_eq!(one.hashes(), &longer.hashes()[..2]);
    assert_ne!(chain(&[9, 2, 3, 4]).hashes()[1], one.hashes()[1], "same block, other tokens before");
    assert_ne!(chain(&[1, 2, 1, 2]).hashes()[0], chain(&[1, 2, 1, 2]).hashes()[1]);
    assert_eq!((one.parent(0), one.parent(1)), (one.root(), one.hashes()[0]));
    // As tokens become known.
    let mut growing = chain(&[1, 2, 3]);
    growing.extend(&[1, 2, 3, 4, 5, 6], 2);
    assert_eq!(growing.hashes(), longer.hashes());
}

#[test]
fn salts_tenants_and_adapters_have_roots_of_their_own() {
    let root = BlockHash::root;
    assert_eq!(root("a", None, None), root("b", None, None), "without a salt all share");
    assert_eq!(root("a", None, Some(3)), root("b", None, Some(3)), "with one adapter, too");
    let roots = [
        root("", None, None),
        root("", Some(""), None),
        root("a", Some(""), None),
        root("", Some("a"), None),
        root("a", Some("b"), None),
        root("ab", Some(""), None),
        root("b", Some("a"), None),
        root("", None, Some(0)),
        root("", None, Some(1)),
        root("", Some(""), Some(1)),
        root("a", Some("b"), Some(1)),
    ];
    for (i, one) in roots.iter().enumerate() {
        assert!(roots[i + 1..].iter().all(|other| one != other), "{i}");
    }
}

#[test]
fn blocks_go_from_free_to_live_to_cached_and_back() {
    let mut pool = pools(3, 4).pop().expect("a third");
    assert_eq!((pool.free(), pool.live(), pool.cached()), (4, 0, 0));
    let blocks = filled(&mut pool, &[1, 2, 3, 4]);
    assert_eq!(blocks, [8, 9], "numbered after those of the pools before");
    let unnamed = pool.take(1).expect("room");
    assert_eq!((pool.free(), pool.live(), pool.cached()), (1, 3, 0));
    assert_eq!(pool.find(chain(&[1, 2, 3, 4]).hashes()), Prefix { blocks: blocks.clone(), revived: 0 });
    pool.share(&blocks[..1]);
    pool.release(&blocks, 5);
    pool.release(&unnamed, 5);
    assert_eq!((pool.free(), pool.live(), pool.cached()), (2, 1, 1), "one is somebody else's still");
    assert_eq!(pool.find(chain(&[1, 2, 3, 4]).hashes()).revived, 1);
    assert_eq!(pool.audit(&BTreeMap::from([(8, 1)])), Ok(()));
    assert!(pool.audit(&BTreeMap::from([(8, 2)])).is_err() && pool.audit(&BTreeMap::new()).is_err());
    assert_eq!(pool.take(4), None, "three can be taken");
    assert_eq!(pool.take(3).map(|blocks| blocks.len()), Some(3), "the cached one too");
    assert_eq!(found(&pool, &[1, 2, 3, 4]), 1);
}

#[test]
fn the_first_block_with_a_content_is_found() {
    let mut pool = pools(1, 4).remove(0);
    let (first, second) = (filled(&mut pool, &[1, 2]), filled(&mut pool, &[1, 2]));
    assert_eq!(pool.find(chain(&[1, 2]).hashes()).blocks, first);
    pool.release(&second, 1);
    assert_eq!((pool.free(), pool.cached()), (3, 0), "the other is free when it is let go");
    pool.release(&first, 2);
    assert_eq!((pool.free(), pool.cached(), found(&pool, &[1, 2])), (3, 1, 1));
}

#[test]
fn what_nobody_continues_goes_first_then_what_was_let_go_first() {
    let mut pool = pools(1, 6).remove(0);
    let long = filled(&mut pool, &[1, 2, 3, 4, 5, 6]);
    let short = filled(&mut pool, &[7, 8]);
    let branch = {
        // Another that continues the first block of the long one.
        let chain = chain(&[1, 2, 9, 9]);
        let block = pool.take(1).expect("room");
        pool.name(block[0], Name { hash: chain.hashes()[1], parent: chain.parent(1), position: 2 });
        block
    };
    pool.release(&long, 10);
    pool.release(&short, 11);
    pool.release(&branch, 12);
    let mut order = Vec::new();
    while pool.available() > 1 {
        let free = pool.free();
        let block = pool.take(1).expect("room")[0];
        order.extend((free == 0).then_some(block));
    }
    assert_eq!(order, [long[2], long[1], short[0], branch[0]], "leaves before what they continue");
    assert_eq!(found(&pool, &[1, 2, 3, 4]), 1, "the common beginning stays longest");
}

#[test]
fn what_was_used_often_stays_longer() {
    let mut pool = pools(1, 2).remove(0);
    let (often, once) = (filled(&mut pool, &[1, 2]), filled(&mut pool, &[3, 4]));
    for _ in 0..3 {
        pool.share(&often);
        pool.release(&often, 1);
    }
    pool.release(&often, 1);
    pool.release(&once, 100);
    pool.take(1).expect("room");
    assert_eq!((found(&pool, &[1, 2]), found(&pool, &[3, 4])), (1, 0));
}

#[test]
fn what_is_left_of_an_evicted_beginning_can_be_found_when_that_comes_back() {
    let mut pool = pools(1, 4).remove(0);
    let first = filled(&mut pool, &[1, 2]);
    // Computed beside it, so its own first block is not the one that is found.
    let second = filled(&mut pool, &[1, 2, 3, 4]);
    pool.release(&first, 1);
    pool.take(2).expect("the free one and the cached one");
    assert_eq!(found(&pool, &[1, 2, 3, 4]), 0, "without its beginning");
    pool.release(&second, 2);
    assert_eq!((pool.free(), pool.cached()), (1, 1));
    let again = filled(&mut pool, &[1, 2]);
    assert_eq!(found(&pool, &[1, 2, 3, 4]), 2);
    pool.release(&again, 500);
    // The beginning is newer, and still goes last.
    pool.take(1).expect("room");
    assert_eq!(found(&pool, &[1, 2, 3, 4]), 1);
}
