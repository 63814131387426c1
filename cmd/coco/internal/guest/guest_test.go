// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"strings"
	"testing"
)

func TestInspectSaysHowAnImageIsMade(t *testing.T) {
	cmd := Command()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs([]string{"inspect", t.TempDir()})
	if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "coco guest build") {
		t.Errorf("coco guest inspect of an empty directory = %v, want an error that names coco guest build", err)
	}
}
