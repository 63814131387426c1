// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"fmt"
	"strings"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

// A directory that the host changes later (watchable-bind) needs no watcher: a bind mount shows its current content.
func init() {
	d := driver{
		sources: func(s *agent.Storage) []string { return []string{s.GetSource()} },
		mount:   (*Manager).mountBind,
	}
	register(contract.DriverWatchableBind, d)
	d.options = func(o string) bool { return strings.HasPrefix(o, contract.OptionSubPath) }
	register(contract.DriverBind, d)
}

// mountBind shows another directory or file below the root at the mount point.
func (m *Manager) mountBind(_ context.Context, point string, mt *mounted, opts options) error {
	if len(opts.data) > 0 {
		return invalid(fmt.Errorf("unknown option %.100q", opts.joined()))
	}
	src, err := m.dir.Open(mt.storage.GetSource())
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	defer src.Close()
	sub, err := takeSubPath(mt.storage.GetDriverOptions())
	if err != nil {
		return err
	}
	at := m.at
	if sub != "" {
		if src, err = openSubPath(src, sub); err != nil {
			return err
		}
		defer src.Close()
		if st, err := src.Stat(); err != nil {
			return err
		} else if !st.IsDir() {
			at = m.atFile
		}
	}
	mount, err := beneath.Clone(src, opts.flags)
	if err != nil {
		return err
	}
	return at(point, mt, mount)
}
