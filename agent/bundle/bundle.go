// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bundle makes and removes the directory in which the agent keeps a container's OCI bundle.
package bundle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/contract"
)

// Sources is the directory of a bundle in which sources of mounts are kept from being exchanged. configName is the
// specification that the OCI runtime reads.
const (
	Sources    = "sources"
	configName = "config.json"
)

// Make makes the directories of a bundle. One that is there already belongs to something that still
// lives, or that could not be removed. After an error nothing was made.
func Make(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("bundle %s is there already: %w", dir, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	if err := os.Mkdir(filepath.Join(dir, contract.RootfsName), 0o755); err != nil {
		return errors.Join(fmt.Errorf("make bundle: %w", err), os.Remove(dir))
	}
	return nil
}

// Remove removes a bundle whose root file system and sources are unmounted. It never descends into
// them: the directories are empty then, and one that is not is an error.
func Remove(dir string) error {
	var errs []error
	for _, name := range []string{contract.RootfsName, Sources, configName, ""} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove bundle: %w", err)
	}
	return nil
}
