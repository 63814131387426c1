// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"fmt"

	"github.com/coco-shim/coco/api/contract"
)

func init() { register(contract.DriverLocal, driver{mount: (*Manager).makeLocal}) }

// makeLocal makes a directory that lives as long as its users.
func (m *Manager) makeLocal(_ context.Context, point string, _ *mounted, opts options) error {
	mode, err := opts.takeMode(0o777)
	if err != nil {
		return invalid(err)
	}
	gid, hasGID, err := opts.takeID("fsgid")
	if err != nil {
		return invalid(err)
	}
	if len(opts.data) > 0 {
		return invalid(fmt.Errorf("unknown option %.100q", opts.joined()))
	}
	dir, _, err := m.dir.Make(point, 0o755)
	if err != nil {
		return err
	}
	defer dir.Close()
	return setModeAndGroup(dir, mode, gid, hasGID)
}
