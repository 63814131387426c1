// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"strings"
	"testing"
)

func TestTheCommandsOnGuestImagesAreElsewhere(t *testing.T) {
	for args, want := range map[string]string{
		"build --agent bin/coco-agent --out dist/guest": "run coco guest build",
		"inspect --json dist/guest":                     "run coco guest inspect",
		"build --help":                                  "run coco guest build",
		"sign":                                          "run coco guest",
		"":                                              "run coco guest",
	} {
		cmd := Command()
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(strings.Fields(args))
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("coco image %s = %v, want an error that ends in %q", args, err, want)
		}
	}
}
