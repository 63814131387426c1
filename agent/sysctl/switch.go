// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sysctl

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Switch writes to into the files of sysfs that match a pattern and read from, such as the switches of processors.
func Switch(pattern, from, to string) error {
	names, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil || strings.TrimSpace(string(b)) != from {
			continue
		}
		if err := os.WriteFile(n, []byte(to), 0); err != nil {
			return fmt.Errorf("bring into use: %w", err)
		}
	}
	return nil
}
