// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"bytes"
	"strings"
	"testing"
)

func TestWhatIsNoReportDataIsRefused(t *testing.T) {
	for want, args := range map[string][]string{
		"accepts 1 arg":             nil,
		"is not 1 to 32 bytes":      {""},
		"\"xy\" is not 1 to 32":     {"xy"},
		"is not 1 to 32 bytes in":   {strings.Repeat("ab", 33)},
		"is not 1 to 48 bytes":      {"--tee", "snp", strings.Repeat("ab", 49)},
		"type \"sample\" cannot be": {"--tee", "sample", "00"},
	} {
		cmd := Command()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetArgs(args)
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), want) || out.Len() > 0 {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}
