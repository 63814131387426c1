// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gen

import "testing"

// All images of a manifest are pulled by the guest, or none.
func TestImagesThatTheGuestPulls(t *testing.T) {
	for _, pull := range []bool{false, true} {
		set := parse(t, one(""))
		images := map[string]Image{}
		for _, ref := range References(set.Workloads[0]) {
			img := image()
			img.Repository = "registry.example/app"
			images[ref] = img
		}
		in := Input{Workload: set.Workloads[0], Objects: set, Images: images, Options: Options{GuestPull: pull}}
		p, _, err := Policy(in)
		if err != nil {
			t.Fatal(err)
		}
		want := map[bool]string{true: "registry.example/app"}[pull]
		for _, c := range p.Containers {
			if c.Image.Pull != want {
				t.Errorf("%s is pulled from %q, want %q", c.Name, c.Image.Pull, want)
			}
		}
		if p.Pulls() != pull {
			t.Errorf("Pulls() = %v", p.Pulls())
		}
	}
}
