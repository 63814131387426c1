// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package burst

import (
	"errors"
	"testing"

	pb "github.com/coco-shim/coco/api/agent"
)

// TestBigRequestsAreNoted: a big request, and one that cannot be decoded, begin the wait after which memory is given
// back. A real guest's memory is measured in tests/agent.
func TestBigRequestsAreNoted(t *testing.T) {
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		size  int
		err   error
		noted bool
	}{
		"small": {size: 100}, "big": {size: bigRequest, noted: true}, "broken": {err: broken, noted: true},
	} {
		var w Watch
		err := w.Decoder(func(req any) error {
			req.(*pb.CopyFileRequest).Data = make([]byte, tc.size)
			return tc.err
		})(&pb.CopyFileRequest{})
		if !errors.Is(err, tc.err) || (w.timer != nil) != tc.noted {
			t.Errorf("%s: %v, noted: %t, want %t", name, err, w.timer != nil, tc.noted)
		}
		w.Close()
		w.note()
		if w.timer != nil && w.timer.Stop() {
			t.Errorf("%s: it waits after its end", name)
		}
	}
}
