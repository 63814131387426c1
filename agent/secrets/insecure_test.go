// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/trust/wire"
)

// What coco-trust tells of insecure switches is in the guest's log, as a warning: those are logged by default.
func TestInsecureSwitchesAreLogged(t *testing.T) {
	s, _ := store(t, "any", map[string][]policy.Secret{})
	var log bytes.Buffer
	s.cfg.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if _, err := s.get(t.Context(), wire.Request{Resource: "kbs:///a/b/c"}); err != nil {
		t.Fatal(err)
	}
	if got := log.String(); !strings.Contains(got, `level=WARN msg="insecure: a switch of any"`) {
		t.Errorf("the log has %q", got)
	}
}
