//! The pages of the cache: who holds which, and which hold a prefix that may be asked for again.
//!
//! A page is room for the keys and values of `page_len` positions, in every block of the model. Pages are counted:
//! sequences that begin alike hold the same pages. A full page is named by its tokens and by the page before it, so that
//! it is found again exactly; when nobody holds it any more it stays until its room is needed, the longest unused first.

use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// Number of a page, as tables of the graph hold it.
pub type PageId = u32;

/// A prefix of full pages: 0 is the empty one. A number is never given twice.
pub type PrefixId = u64;

/// A full page by what it holds.
type PrefixKey = (PrefixId, Box<[u32]>);

#[derive(Debug, Default)]
struct Page {
    holders: u32,
    /// What it holds, once that is known to others.
    prefix: Option<(PrefixKey, PrefixId)>,
    /// When it was last given back; its place among those that may be evicted.
    released: u64,
}

/// All pages of a cache.
#[derive(Debug)]
pub struct PagePool {
    page_len: usize,
    pages: Vec<Page>,
    /// Pages that hold nothing.
    empty: Vec<PageId>,
    /// Pages that nobody holds but that may be found again, by when they were given back.
    idle: BTreeMap<u64, PageId>,
    found: FxHashMap<PrefixKey, (PageId, PrefixId)>,
    clock: u64,
    next_prefix: PrefixId,
}

/// Pages that hold the beginning of a text, held for whoever asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// The pages in order.
    pub pages: Vec<PageId>,
    /// Name of the whole.
    pub id: PrefixId,
}

impl PagePool {
    /// So many empty pages of `page_len` positions each.
    pub fn new(pages: usize, page_len: usize) -> PagePool {
        let mut all = Vec::new();
        all.resize_with(pages, Page::default);
        PagePool {
            page_len,
            pages: all,
            empty: (0..pages as PageId).rev().collect(),
            idle: BTreeMap::new(),
            found: FxHashMap::default(),
            clock: 0,
            next_prefix: 1,
        }
    }

    /// Positions of a page.
    pub fn page_len(&self) -> usize {
        self.page_len
    }

    /// Pages altogether.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Pages that [`PagePool::take`] can give.
    pub fn available(&self) -> usize {
        self.empty.len() + self.idle.len()
    }

    /// Pages that hold a prefix that may be found, held by somebody or not.
    pub fn known(&self) -> usize {
        self.found.len()
    }

    /// A page for one holder, its content of no account; the longest idle one is emptied for it if need be. `None` when
    /// all are held.
    pub fn take(&mut self) -> Option<PageId> {
        let id = match self.empty.pop() {
            Some(id) => id,
            None => {
                let (_, id) = self.idle.pop_first()?;
                self.forget(id);
                id
            }
        };
        self.pages[id as usize].holders = 1;
        Some(id)
    }

    /// Gives up one hold on each of the pages of a sequence. The last of them is evicted first: a prefix is of no use
    /// without what comes before.
    pub fn release(&mut self, pages: &[PageId]) {
        for id in pages.iter().rev() {
            let page = &mut self.pages[*id as usize];
            debug_assert!(page.holders > 0, "bug: a page is given back twice");
            page.holders -= 1;
            if page.holders > 0 {
                continue;
            }
            if page.prefix.is_none() {
                self.empty.push(*id);
                continue;
            }
            page.released = self.clock;
            self.idle.insert(self.clock, *id);
            self.clock += 1;
        }
    }

    /// Holds the pages of the longest known prefix of `tokens`, in whole pages.
    pub fn find(&mut self, tokens: &[u32]) -> Prefix {
        let mut prefix = Prefix::default();
        for chunk in tokens.chunks_exact(self.page_len) {
            let Some((page, id)) = self.found.get(&(prefix.id, chunk.into())).copied() else {
                break;
            };
            self.hold(page);
            prefix.pages.push(page);
            prefix.id = id;
        }
        prefix
    }

    /// How many leading tokens [`PagePool::find`] would find, without holding them.
    pub fn known_len(&self, tokens: &[u32]) -> usize {
        let mut id = 0;
        let chunks = tokens.chunks_exact(self.page_len);
        let known = chunks.take_while(|chunk| {
            let next = self.found.get(&(id, (*chunk).into()));
            next.inspect(|(_, next)| id = *next).is_some()
        });
        known.count() * self.page_len
    }

    fn hold(&mut self, id: PageId) {
        let page = &mut self.pages[id as usize];
        if page.holders == 0 {
            self.idle.remove(&page.released);
        }
        page.holders += 1;
    }

    /// Makes a full page known: it holds `tokens` after the prefix `before`. Gives the name of the prefix with them. A
    /// page that holds the same already stays the known one.
    pub fn publish(&mut self, page: PageId, before: PrefixId, tokens: &[u32]) -> PrefixId {
        debug_assert_eq!(tokens.len(), self.page_len, "bug: a page that is not full");
        let key: PrefixKey = (before, tokens.into());
        if let Some((_, id)) = self.found.get(&key) {
            return *id;
        }
        let id = self.next_prefix;
        self.next_prefix += 1;
        self.found.insert(key.clone(), (page, id));
        self.pages[page as usize].prefix = Some((key, id));
        id
    }

    /// Empties every page that nobody holds.
    pub fn forget_idle(&mut self) {
        while let Some((_, id)) = self.idle.pop_first() {
            self.forget(id);
            self.empty.push(id);
        }
    }

    fn forget(&mut self, id: PageId) {
        if let Some((key, _)) = self.pages[id as usize].prefix.take() {
            self.found.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_prefix_is_found_by_its_tokens_and_all_before_them() {
        let mut pool = PagePool::new(4, 2);
        let pages = [pool.take(), pool.take()].map(|p| p.expect("a page"));
        let first = pool.publish(pages[0], 0, &[1, 2]);
        pool.publish(pages[1], first, &[3, 4]);
        pool.release(&pages);
        assert_eq!(pool.available(), 4);
        assert_eq!(pool.known_len(&[1, 2, 3, 4, 5]), 4);
        assert_eq!(pool.find(&[3, 4]), Prefix::default());
        assert_eq!(pool.find(&[1, 2, 9, 9]).pages, [pages[0]]);
        assert_eq!(pool.find(&[1, 2, 3, 4, 5]).pages, pages);
        assert_eq!(pool.available(), 2);
    }

    #[test]
    fn the_end_of_the_longest_idle_prefix_is_evicted_first() {
        let mut pool = PagePool::new(3, 1);
        let old = [pool.take(), pool.take()].map(|p| p.expect("a page"));
        let first = pool.publish(old[0], 0, &[1]);
        pool.publish(old[1], first, &[2]);
        let new = pool.take().expect("a page");
        pool.publish(new, 0, &[7]);
        pool.release(&old);
        pool.release(&[new]);
        assert_eq!(pool.take(), Some(old[1]));
        assert_eq!(pool.known_len(&[1, 2]), 1);
        assert_eq!(pool.known_len(&[7]), 1);
    }

    #[test]
    fn a_held_page_is_never_given_away() {
        let mut pool = PagePool::new(1, 1);
        let page = pool.take().expect("a page");
        pool.publish(page, 0, &[5]);
        assert_eq!(pool.take(), None);
        assert_eq!(pool.find(&[5]).pages, [page]);
        pool.release(&[page]);
        assert_eq!(pool.take(), None);
        pool.release(&[page]);
        assert_eq!(pool.take(), Some(page));
        assert_eq!(pool.known(), 0);
    }

    /// What a sequence of the random test holds: its tokens and pages.
    type Held = (Vec<u32>, Vec<PageId>);

    /// Begins a text: finds what is known of it, computes the rest and makes it known.
    fn begin(pool: &mut PagePool, contents: &mut [Vec<u32>], tokens: Vec<u32>) -> Option<Held> {
        let Prefix { mut pages, mut id } = pool.find(&tokens);
        for (page, chunk) in pages.iter().zip(tokens.chunks(pool.page_len())) {
            assert_eq!(
                contents[*page as usize], chunk,
                "a page holds what it is found by"
            );
        }
        let known = pages.len();
        for chunk in tokens.chunks_exact(pool.page_len()).skip(known) {
            let Some(page) = pool.take() else {
                pool.release(&pages);
                return None;
            };
            contents[page as usize] = chunk.to_vec();
            pages.push(page);
            id = pool.publish(page, id, chunk);
        }
        Some((tokens, pages))
    }

    proptest! {
        #[test]
        fn pages_of_random_texts_are_never_mixed_up(
            texts in prop::collection::vec((prop::collection::vec(0u32..2, 0..12), any::<u8>()), 1..60)
        ) {
            let mut pool = PagePool::new(9, 2);
            let mut contents = vec![vec![]; 9];
            let mut held: Vec<Held> = vec![];
            for (tokens, act) in texts {
                held.extend(begin(&mut pool, &mut contents, tokens));
                for (tokens, pages) in &held {
                    for (page, chunk) in pages.iter().zip(tokens.chunks(2)) {
                        prop_assert_eq!(&contents[*page as usize], chunk);
                    }
                }
                if act % 2 == 0 && !held.is_empty() {
                    let (_, pages) = held.swap_remove(usize::from(act) / 2 % held.len());
                    pool.release(&pages);
                }
            }
            for (_, pages) in held {
                pool.release(&pages);
            }
            prop_assert_eq!(pool.available(), 9);
        }
    }
}
