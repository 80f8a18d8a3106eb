//! Queries as a merge of index walks, in steps.
//!
//! A filter becomes one branch for each value of its best index; all branches of all filters meet in one heap, so the
//! answer comes in serve order without a sort, an event that matches twice comes once, and `limit` stops the walk.
//!
//! Where a filter has other conditions of one value, the walk goes through their rows too, and each skips to where the
//! other is: an author's ten events in a channel of a million cost ten looks, whichever of the two is walked.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use skep_proto::{EventId, EventRef, Filter, filter};

use super::env::Table;
use super::keys::{self, Key, Pos};
use super::layers::View;
use crate::{Progress, Scan, StoreError, Visit, Visitor};

/// Positions read from an index at a time: few at first, for the many queries that want few.
const CHUNK_MIN: usize = 8;
const CHUNK_MAX: usize = 256;

/// More branches than this for author x kind, and the walk goes by author alone.
const AUTHOR_KIND_BRANCHES_MAX: usize = 1_024;

struct State {
    branches: Vec<Branch>,
    heap: BinaryHeap<Reverse<(Pos, usize)>>,
    /// Branches whose next position is not known yet: nothing is served before it is.
    waiting: VecDeque<usize>,
}

struct Branch {
    /// Which filter it belongs to.
    filter: usize,
    walk: Walk,
    ready: VecDeque<Pos>,
    /// Whatever its walk finds matches its filter when the kind does: no record needs to be looked at.
    is_exact: bool,
}

enum Walk {
    Index(Rows),
    /// What has a row in each of these, from a position on; with what was read ahead of it.
    Common(Pos, Vec<(Rows, VecDeque<Pos>)>),
    /// Ids to be looked up; they are found before the first answer, because their order is not known.
    Ids(Vec<EventId>),
    Done,
}

/// An index from `next` on, while keys have the prefix and are not older than `oldest`.
struct Rows {
    table: Table,
    prefix: Key,
    next: Pos,
    oldest: u64,
    chunk: usize,
}

pub(super) fn run(
    view: &View<'_>,
    scan: &mut Scan,
    mut budget: usize,
    visitor: &mut dyn Visitor,
) -> Result<Progress, StoreError> {
    let mut state = match scan.state.take().and_then(|state| state.downcast::<State>().ok()) {
        Some(state) => state,
        None => Box::new(plan(scan)),
    };
    let progress = step(view, scan, &mut state, &mut budget, visitor)?;
    if progress == Progress::More {
        scan.state = Some(state);
    }
    Ok(progress)
}

fn step(
    view: &View<'_>,
    scan: &mut Scan,
    state: &mut State,
    budget: &mut usize,
    visitor: &mut dyn Visitor,
) -> Result<Progress, StoreError> {
    loop {
        while let Some(&branch) = state.waiting.front() {
            if *budget == 0 {
                return Ok(Progress::More);
            }
            *budget -= 1;
            let remaining = scan.remaining[state.branches[branch].filter];
            if state.advance(view, branch, remaining, budget)? {
                state.waiting.pop_front();
            }
        }
        let Some(Reverse((pos, _))) = state.heap.peek().copied() else { return Ok(Progress::Done) };
        if *budget == 0 {
            return Ok(Progress::More);
        }
        serve_one(view, scan, state, pos, budget, visitor)?;
    }
}

/// Takes one position off every branch that has it, and serves its event at most once.
fn serve_one(
    view: &View<'_>,
    scan: &mut Scan,
    state: &mut State,
    pos: Pos,
    budget: &mut usize,
    visitor: &mut dyn Visitor,
) -> Result<(), StoreError> {
    let mut last_filter = usize::MAX;
    let mut found = Found { view, pos, is_late: pos.seq() > scan.up_to, record: None, verdict: None };
    while let Some(&Reverse((head, branch))) = state.heap.peek() {
        if head != pos {
            break;
        }
        state.heap.pop();
        *budget = budget.saturating_sub(1);
        // Branches of one filter stand together, and equal positions leave the heap by branch number.
        let filter = state.branches[branch].filter;
        if filter != last_filter && scan.remaining[filter] > 0 {
            last_filter = filter;
            let verdict = found.show(&scan.filters[filter], state.branches[branch].is_exact, visitor)?;
            if verdict == Visit::ServeLast {
                *budget = 0;
            }
            if verdict != Visit::Hide {
                scan.remaining[filter] = scan.remaining[filter].saturating_sub(1);
            }
        }
        let remaining = scan.remaining[filter];
        if remaining > 0 && !state.advance(view, branch, remaining, budget)? {
            state.waiting.push_back(branch);
        }
    }
    Ok(())
}

/// One position, for all the filters that come to it. Its record is loaded when the row does not tell enough.
struct Found<'a, 'v> {
    view: &'a View<'v>,
    pos: Pos,
    /// Newer than the scan.
    is_late: bool,
    record: Option<EventRef<'a>>,
    /// What the visitor said; it is asked once.
    verdict: Option<Visit>,
}

impl Found<'_, '_> {
    /// What the visitor makes of it, if it matches this filter.
    fn show(&mut self, filter: &Filter, is_exact: bool, visitor: &mut dyn Visitor) -> Result<Visit, StoreError> {
        let is_kind = filter.kinds.as_ref().is_none_or(|kinds| kinds.contains(&self.pos.kind()));
        if self.is_late || !is_kind {
            return Ok(Visit::Hide);
        }
        if is_exact && !self.pos.expires() && self.verdict.is_none() && visitor.row(self.pos.kind()) {
            self.verdict = Some(Visit::Serve);
        }
        if is_exact && let Some(verdict) = self.verdict {
            return Ok(verdict);
        }
        if self.record.is_none() {
            self.record = self.view.event(self.pos.seq())?;
        }
        let Some(event) = self.record.filter(|event| filter.matches(*event)) else { return Ok(Visit::Hide) };
        Ok(*self.verdict.get_or_insert_with(|| visitor.event(self.pos.seq(), event)))
    }
}

impl State {
    /// Puts a branch's next position on the heap. `false`: it needs another step first (a long id list, or much to skip).
    fn advance(&mut self, view: &View<'_>, at: usize, remaining: u64, budget: &mut usize) -> Result<bool, StoreError> {
        let branch = &mut self.branches[at];
        // Ids are looked up to the last before the first is served: their order is not known.
        let is_looking_up = matches!(branch.walk, Walk::Ids(_));
        if (is_looking_up || branch.ready.is_empty()) && !branch.fill(view, remaining, budget)? {
            return Ok(false);
        }
        if let Some(pos) = branch.ready.pop_front() {
            self.heap.push(Reverse((pos, at)));
        }
        Ok(true)
    }
}

impl Branch {
    fn fill(&mut self, view: &View<'_>, remaining: u64, budget: &mut usize) -> Result<bool, StoreError> {
        match &mut self.walk {
            Walk::Done => Ok(true),
            Walk::Ids(ids) => {
                while let Some(id) = ids.pop() {
                    if let Some(seq) = view.seq_of(None, &id)?
                        && let Some(event) = view.event(seq)?
                    {
                        self.ready.push_back(Pos::of(event, seq));
                    }
                    *budget = budget.saturating_sub(1);
                    if *budget == 0 && !ids.is_empty() {
                        return Ok(false);
                    }
                }
                self.ready.make_contiguous().sort_unstable();
                self.walk = Walk::Done;
                Ok(true)
            }
            Walk::Index(rows) => {
                if !rows.read(view, remaining, &mut self.ready)? {
                    self.walk = Walk::Done;
                }
                Ok(true)
            }
            Walk::Common(from, all) => {
                while *budget > 0 {
                    *budget = budget.saturating_sub(all.len());
                    let mut is_common = true;
                    for (rows, ahead) in &mut *all {
                        let Some(found) = rows.first(view, *from, ahead)? else {
                            self.walk = Walk::Done;
                            return Ok(true);
                        };
                        is_common &= found == *from;
                        *from = found;
                    }
                    if is_common {
                        self.ready.push_back(*from);
                        *from = from.after();
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }
}

impl Rows {
    /// Reads the next positions, no more than are wanted. `false`: there are no more.
    fn read(&mut self, view: &View<'_>, wanted: u64, into: &mut VecDeque<Pos>) -> Result<bool, StoreError> {
        let want = self.chunk.min(usize::try_from(wanted).unwrap_or(usize::MAX)).max(1);
        self.chunk = (self.chunk * 2).min(CHUNK_MAX);
        let mut found = 0;
        view.walk(None, self.table, self.prefix.with(self.next).as_bytes(), |key, _| {
            let pos = Pos::read(key).filter(|_| key.starts_with(self.prefix.as_bytes()));
            let Some(pos) = pos.filter(|pos| pos.created_at() >= self.oldest) else { return false };
            into.push_back(pos);
            self.next = pos.after();
            found += 1;
            found < want
        })?;
        Ok(found == want)
    }

    /// The first position from `from` on. What was read ahead and comes before it is left out; what lies in between and
    /// was not read is skipped.
    fn first(&mut self, view: &View<'_>, from: Pos, ahead: &mut VecDeque<Pos>) -> Result<Option<Pos>, StoreError> {
        while ahead.front().is_some_and(|pos| *pos < from) {
            ahead.pop_front();
        }
        if ahead.is_empty() {
            if self.next < from {
                self.next = from;
                self.chunk = CHUNK_MIN;
            }
            self.read(view, u64::MAX, ahead)?;
        }
        Ok(ahead.front().copied())
    }
}

fn plan(scan: &Scan) -> State {
    let mut branches = Vec::new();
    for (i, filter) in scan.filters.iter().enumerate() {
        if scan.remaining[i] > 0 && !filter.matches_nothing() {
            plan_filter(filter, i, &mut branches);
        }
    }
    let waiting = (0..branches.len()).collect();
    State { heap: BinaryHeap::with_capacity(branches.len()), branches, waiting }
}

/// Chooses the index: ids, else a word, else the tag with the fewest values, else authors (with kinds), else kinds.
fn plan_filter(filter: &Filter, number: usize, branches: &mut Vec<Branch>) {
    // One branch is read in long runs; of many, most may never be needed.
    let is_single = filter.ids.is_none() && filter.values() <= 1;
    let chunk = if is_single { CHUNK_MAX } else { CHUNK_MIN };
    let is_exact = filter.ids.is_none() && filter.tags.is_empty() && filter.search.is_none();
    let mut walk = |walk| branches.push(Branch { filter: number, walk, ready: VecDeque::new(), is_exact });
    let newest = Pos::at(filter.until.unwrap_or(u64::MAX));
    let rows = |(table, prefix)| Rows { table, prefix, next: newest, oldest: filter.since.unwrap_or(0), chunk };
    let index = |table, prefix| Walk::Index(rows((table, prefix)));
    let tag = |letter, value: &str| (Table::Tags, keys::tag(letter, value.as_bytes()));
    // The other conditions of one value, where a tag or a word is walked.
    let single_author = match (filter.authors.as_deref(), filter.kinds.as_deref()) {
        (Some([author]), Some([kind])) => Some((Table::AuthorKinds, keys::author_kind(author, *kind))),
        (Some([author]), _) => Some((Table::Authors, keys::author(author))),
        _ => None,
    };
    let single_tags = |walked: Option<u8>| {
        let others = filter.tags.iter().filter(move |(letter, _)| Some(*letter) != walked);
        others.filter_map(|(letter, values)| match values.as_slice() {
            [value] => Some(tag(*letter, value)),
            _ => None,
        })
    };
    let common = |first, walked| {
        let others = single_author.into_iter().chain(single_tags(walked));
        let all: Vec<_> = std::iter::once(first).chain(others).map(|each| (rows(each), VecDeque::new())).collect();
        if all.len() == 1 { Walk::Index(rows(first)) } else { Walk::Common(newest, all) }
    };
    if let Some(ids) = &filter.ids {
        return walk(Walk::Ids(ids.clone()));
    }
    let words = filter.search.as_deref().map(filter::search_words).unwrap_or_default();
    if let Some(word) = words.iter().max_by_key(|word| word.len()) {
        return walk(common((Table::Tags, keys::word(word)), None));
    }
    if let Some((letter, values)) = filter.tags.iter().min_by_key(|(_, values)| values.len()) {
        return values.iter().for_each(|value| walk(common(tag(*letter, value), Some(*letter))));
    }
    match (&filter.authors, &filter.kinds) {
        (Some(authors), Some(kinds)) if authors.len() * kinds.len() <= AUTHOR_KIND_BRANCHES_MAX => {
            for author in authors {
                kinds.iter().for_each(|kind| walk(index(Table::AuthorKinds, keys::author_kind(author, *kind))));
            }
        }
        (Some(authors), _) => authors.iter().for_each(|author| walk(index(Table::Authors, keys::author(author)))),
        (None, Some(kinds)) => kinds.iter().for_each(|kind| walk(index(Table::Kinds, keys::kind(*kind)))),
        (None, None) => walk(index(Table::Created, Key::new(&[]))),
    }
}
