// This file answers: can a server below sign identities of the trust domain that
// clients believe, with what this server signed for it?
package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
)

// downstreamChecks are made as a server whose entry has the downstream flag.
func (s *suite) downstreamChecks(ctx context.Context, below *client) {
	s.check(ctx, "downstream/what-its-authority-signs-verifies", func(c *check) {
		needs(c, below)
		key, chain, roots := s.authorityBelow(c, below, 60)
		ca := chain[0]
		c.that(ca.IsCA && ca.BasicConstraintsValid && ca.MaxPathLen == -1, "basic constraints: %v, path length %d", ca.IsCA, ca.MaxPathLen)
		equal(c, "key usage", ca.KeyUsage, x509.KeyUsageCertSign|x509.KeyUsageCRLSign)
		c.that(len(ca.URIs) == 1 && ca.URIs[0].String() == s.server.domain.IDString(), "named %v", ca.URIs)
		left := time.Until(ca.NotAfter)
		c.that(left > 0 && left <= time.Minute, "ends in %v", left)
		id := s.path("signed-below")
		leaf := signBelow(c, key, ca, id.URL())
		for name, bundle := range map[string]*x509bundle.Bundle{
			"bundle": s.server.bundle,
			"answer": x509bundle.FromX509Authorities(s.server.domain, roots),
		} {
			verified, _, err := x509svid.Verify(append([]*x509.Certificate{leaf}, chain...), bundle)
			c.ok(err, "verify against the "+name)
			equal(c, "SPIFFE ID", verified, id)
			_, _, err = x509svid.Verify([]*x509.Certificate{leaf}, bundle)
			c.that(err != nil, "it verifies without the authority that signed it")
		}
	})
	s.check(ctx, "downstream/a-request-for-another-name-is-refused", func(c *check) {
		needs(c, below)
		for _, name := range []string{s.path("caller-downstream").String(), "spiffe://elsewhere.test"} {
			csr, err := newCSR(mustKey(c), name)
			c.ok(err, "make certificate request")
			_, err = below.svids.NewDownstreamX509CA(c.ctx, &svidv1.NewDownstreamX509CARequest{Csr: csr})
			c.code(err, codes.InvalidArgument, name)
		}
	})
	s.check(ctx, "downstream/its-jwt-authority-is-published", func(c *check) {
		needs(c, below)
		public, err := x509.MarshalPKIXPublicKey(mustKey(c).Public())
		c.ok(err, "marshal key")
		key := &types.JWTKey{PublicKey: public, KeyId: "below", ExpiresAt: time.Now().Add(time.Minute).Unix()}
		answer, err := below.bundles.PublishJWTAuthority(c.ctx, &bundlev1.PublishJWTAuthorityRequest{JwtAuthority: key})
		c.ok(err, "publish")
		published, err := s.admin.bundles.GetBundle(c.ctx, &bundlev1.GetBundleRequest{})
		c.ok(err, "get bundle")
		for what, keys := range map[string][]*types.JWTKey{"answer": answer.GetJwtAuthorities(), "bundle": published.GetJwtAuthorities()} {
			found := false
			for _, one := range keys {
				found = found || one.GetKeyId() == "below"
			}
			c.that(found, "the %s lacks the key", what)
		}
	})
}

// authorityBelow has an authority signed that lives for so many seconds.
func (s *suite) authorityBelow(c *check, below *client, ttl int32) (*ecdsa.PrivateKey, []*x509.Certificate, []*x509.Certificate) {
	key := mustKey(c)
	csr, err := newCSR(key, s.server.domain.IDString())
	c.ok(err, "make certificate request")
	answer, err := below.svids.NewDownstreamX509CA(c.ctx, &svidv1.NewDownstreamX509CARequest{Csr: csr, PreferredTtl: ttl})
	c.ok(err, "ask for an authority")
	parse := func(all [][]byte) (parsed []*x509.Certificate) {
		for _, der := range all {
			one, err := x509.ParseCertificate(der)
			c.ok(err, "parse certificate")
			parsed = append(parsed, one)
		}
		return parsed
	}
	chain, roots := parse(answer.GetCaCertChain()), parse(answer.GetX509Authorities())
	c.that(len(chain) > 0 && len(roots) > 0, "%d certificates in the chain, %d roots", len(chain), len(roots))
	c.that(key.PublicKey.Equal(chain[0].PublicKey), "the authority has another key")
	return key, chain, roots
}

// signBelow signs an X509-SVID with the authority ca.
func signBelow(c *check, signer crypto.Signer, ca *x509.Certificate, id *url.URL) *x509.Certificate {
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		NotBefore:             ca.NotBefore,
		NotAfter:              ca.NotAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{id},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, mustKey(c).Public(), signer)
	c.ok(err, "sign X509-SVID")
	leaf, err := x509.ParseCertificate(der)
	c.ok(err, "parse X509-SVID")
	return leaf
}
