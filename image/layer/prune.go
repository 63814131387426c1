// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"errors"
	"os"
	"strings"
)

// Pruned says what Prune removed.
type Pruned struct {
	Layers int
	Bytes  int64
}

// Prune removes the layers whose source is gone or has changed and that no pod uses, and what dead
// processes left behind. Layers that are in use stay, and go next time. Every build calls it.
func (c *Cache) Prune(ctx context.Context) (Pruned, error) {
	c.sweep()
	live, err := c.pruneKeys(ctx)
	if err != nil {
		return Pruned{}, err
	}
	names, err := listDir(c.path(dirBlobs))
	if err != nil {
		return Pruned{}, err
	}
	var p Pruned
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return p, err
		}
		if live[name] {
			continue
		}
		if size, removed := removeUnused(c.path(dirBlobs, name)); removed {
			p.Layers++
			p.Bytes += size
		}
	}
	return p, nil
}

// pruneKeys forgets keys whose source is not there any more and returns the root hashes of the
// others.
func (c *Cache) pruneKeys(ctx context.Context) (map[string]bool, error) {
	names, err := listDir(c.path(dirKeys))
	if err != nil {
		return nil, err
	}
	live := map[string]bool{}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		key := strings.TrimSuffix(name, ".json")
		m, _, err := c.readMeta(key)
		if err == nil && m.current(key) {
			live[m.RootHash] = true
			continue
		}
		if err := os.Remove(c.path(dirKeys, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	locks, err := listDir(c.path(dirLocks))
	if err != nil {
		return nil, err
	}
	for _, name := range locks {
		if _, err := os.Stat(c.path(dirKeys, name+".json")); errors.Is(err, os.ErrNotExist) {
			removeUnused(c.path(dirLocks, name))
		}
	}
	return live, nil
}

// current reports whether the source still is what the layer was built from.
func (m meta) current(key string) bool {
	id, err := identify(m.Identity.Source)
	if err != nil {
		return false
	}
	k, err := id.key()
	return err == nil && k == key
}

func listDir(path string) ([]string, error) {
	d, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}
