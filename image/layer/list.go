// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"cmp"
	"context"
	"math"
	"os"
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is a layer of the cache.
type Entry struct {
	RootHash string    `json:"root_hash"`
	Size     int64     `json:"size"`
	Sources  []string  `json:"sources"`   // snapshots that it was built from and that are there, unchanged
	LastUsed time.Time `json:"last_used"` // by the start of a container
	InUse    bool      `json:"in_use"`    // by a VM
}

// Needed says whether the snapshot of a layer is there still.
func (e Entry) Needed() bool { return len(e.Sources) > 0 }

// List lists the layers, the one that was used longest ago first.
func (c *Cache) List(ctx context.Context) ([]Entry, error) {
	names, err := listDir(c.path(dirBlobs))
	if err != nil {
		return nil, err
	}
	by := map[string]*Entry{}
	for _, name := range names {
		st, err := os.Stat(c.path(dirBlobs, name))
		if err != nil {
			continue // it went meanwhile
		}
		by[name] = &Entry{
			RootHash: name, Size: st.Size(), Sources: []string{}, LastUsed: st.ModTime(),
			InUse: inUse(c.path(dirBlobs, name)),
		}
	}
	keys, err := listDir(c.path(dirKeys))
	if err != nil {
		return nil, err
	}
	for _, name := range keys {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		key := strings.TrimSuffix(name, ".json")
		m, _, err := c.readMeta(key)
		e := by[m.RootHash]
		if err != nil || e == nil {
			continue
		}
		if m.current(key) {
			e.Sources = append(e.Sources, m.Identity.Path)
		}
		if st, err := os.Stat(c.path(dirKeys, name)); err == nil && st.ModTime().After(e.LastUsed) {
			e.LastUsed = st.ModTime()
		}
	}
	var out []Entry
	for _, e := range by {
		slices.Sort(e.Sources)
		out = append(out, *e)
	}
	sort.Slice(out, func(a, b int) bool { // slices.SortFunc costs 20 kB of the shim for a type as large as Entry
		return cmp.Or(out[a].LastUsed.Compare(out[b].LastUsed), cmp.Compare(out[a].RootHash, out[b].RootHash)) < 0
	})
	return out, nil
}

// Trim removes the layers that no snapshot needs, and then of the others those that were used longest ago, until the
// cache holds at most most bytes. Layers that a VM uses stay, even above the bound. Trim calls removed for each layer
// that it removes; with dry, for each that it would. A layer whose snapshot is there is built again when it is wanted.
func (c *Cache) Trim(ctx context.Context, most int64, dry bool, removed func(Entry)) error {
	list, err := c.List(ctx)
	if err != nil {
		return err
	}
	var total int64
	for _, e := range list {
		total += e.Size
	}
	for _, needed := range []bool{false, true} {
		for _, e := range list {
			if err := ctx.Err(); err != nil {
				return err
			}
			if e.Needed() != needed || e.InUse || needed && total <= most {
				continue
			}
			if !dry {
				if _, gone := removeUnused(c.path(dirBlobs, e.RootHash)); !gone {
					continue
				}
			}
			total -= e.Size
			removed(e)
		}
	}
	if dry {
		return nil
	}
	c.sweep()
	_, err = c.pruneKeys(ctx)
	return err
}

// Bound is how many bytes the cache may hold: so many MiB, or with 0 half of its file system.
func (c *Cache) Bound(mib uint64) int64 {
	if mib > 0 {
		return int64(mib) << 20 //nolint:gosec // the configuration bounds it
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(c.dir, &fs); err != nil {
		return math.MaxInt64
	}
	return int64(fs.Blocks/2) * fs.Bsize //nolint:gosec // no file system has 2^63 bytes
}

// used notes the use of a layer. Best effort: it only decides which one goes first.
func (c *Cache) used(key string) {
	now := time.Now()
	_ = os.Chtimes(c.path(dirKeys, key+".json"), now, now)
}

// inUse says whether somebody holds a lock on a file.
func inUse(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return flock(f, unix.LOCK_EX|unix.LOCK_NB) != nil
}
