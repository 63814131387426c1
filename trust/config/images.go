// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/url"
	"strings"

	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/internal/initdata"
)

// image is the part of cdh.toml about images that guests pull.
type image struct {
	Roots []string `toml:"extra_root_certificates"`
	Login string   `toml:"authenticated_registry_credentials_uri"`
	Proxy struct {
		HTTPS string `toml:"https_proxy"`
		No    string `toml:"no_proxy"`
	} `toml:"image_pull_proxy"`
}

// Images says how a pod's guest reaches registries.
type Images struct {
	Roots []*x509.Certificate // of registries; no others are trusted
	Login string              // the broker's resource that is the auth.json, "repository/type/tag"; "": there are none
	Proxy *url.URL            // nil: none
	// NoProxy has the hosts that are asked without it: a name also stands for those below it, and ".name" for these only.
	NoProxy []string
}

// ParseImages reads the files of initdata.
func ParseImages(files map[string]string) (out Images, err error) {
	var c cdh
	if err := decode(files, initdata.FileCDH, &c); err != nil {
		return Images{}, err
	}
	wrong := func(key, why string) error { return fmt.Errorf("%s, image.%s: %s", initdata.FileCDH, key, why) }
	for i, text := range c.Image.Roots {
		list, err := certificates([]byte(text))
		if err != nil {
			return Images{}, wrong(fmt.Sprintf("extra_root_certificates[%d]", i), err.Error())
		}
		out.Roots = append(out.Roots, list...)
	}
	if l := c.Image.Login; l != "" {
		if out.Login, err = kbs.ParsePath(l); err != nil {
			return Images{}, wrong("authenticated_registry_credentials_uri", err.Error())
		}
	}
	if p := c.Image.Proxy.HTTPS; p != "" {
		out.Proxy, err = url.Parse(p)
		if err != nil || out.Proxy.Host == "" || out.Proxy.Scheme != "http" && out.Proxy.Scheme != "https" {
			return Images{}, wrong("image_pull_proxy.https_proxy", "is no URL such as http://proxy.example:3128")
		}
	}
	for host := range strings.SplitSeq(c.Image.Proxy.No, ",") {
		if host = strings.TrimSpace(host); host != "" {
			out.NoProxy = append(out.NoProxy, host)
		}
	}
	return out, nil
}

func certificates(text []byte) (out []*x509.Certificate, err error) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out, text = append(out, c), rest
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("has no certificate in PEM")
	}
	return out, nil
}

// ProxyFor returns the proxy for a URL, nil for none.
func (i Images) ProxyFor(u *url.URL) (*url.URL, error) {
	host := strings.ToLower(u.Hostname())
	for _, no := range i.NoProxy {
		no = strings.ToLower(no)
		if no == "*" || host == no || strings.HasSuffix(host, "."+strings.TrimPrefix(no, ".")) {
			return nil, nil //nolint:nilnil // as http.Transport wants it
		}
	}
	return i.Proxy, nil
}
