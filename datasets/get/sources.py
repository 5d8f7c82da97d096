"""The fifteen datasets of ``python -m datasets.prepare``: addresses, file names and numbers of images.

Addresses, layouts and Google Drive ids are those of CoOp's DATASETS.md. Where a host is gone, a comment names its
replacement. MD5 sums are torchvision's, SHA-256 sums are TensorFlow Datasets', and the sums of ImageNet-A and -R are
the ones that their users agree on. A file without a checksum is checked by its length, by unpacking it, and by counting
its images.
"""

from __future__ import annotations

from .layout import File, Source, archive, drive

OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
BERKELEY = "https://people.eecs.berkeley.edu/~hendrycks"
STANFORD = "https://ai.stanford.edu/~jkrause"
PRINCETON = "https://vision.princeton.edu/projects/2010/SUN"
HUGGING_FACE = "https://huggingface.co/datasets"

IMAGENET_STEPS = """\
ImageNet is given out to registered users only:
  1. sign in at https://image-net.org/download-images.php and agree to its terms;
  2. save ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar (138 GB) and ILSVRC2012_img_val.tar (6 GB) in
     '{folder}/images';
  3. let torchvision check them by MD5 and unpack them into images/train/n*/ and images/val/n*/:
     python -c "from torchvision.datasets import ImageNet; [ImageNet('{folder}/images', s) for s in ('train', 'val')]"
  4. python -m datasets.prepare imagenet fetches classnames.txt, then counts the images.
Where you have ImageNet already, link its folders: ln -s /your/imagenet/train '{folder}/images/train', and so val."""

CARS_STEPS = """\
Stanford's server has not given the pictures out since 2023. Copies of the three archives and of
cars_test_annos_withlabels.mat are kept by others (one on Kaggle, for which you need an account); take one, and
  - give the address of its folder as --mirror, or save the archives in '{folder}' and repeat the command;
  - or lay cars_train/, cars_test/ and devkit/ out in '{folder}' yourself."""

CLASSNAMES = drive("1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF", "classnames.txt")

CALTECH101 = (
    drive("1hyarUivQE36mY6jSomru6Fjd-JzwcCzN", "split_zhou_Caltech101.json"),
    archive(  # vision.caltech.edu is gone; Caltech's library has the same archive, in a zip
        "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
        "md5:3138e1922a9193bfa496528edbbc45d0",
        "101_ObjectCategories",
        inner="caltech-101/101_ObjectCategories.tar.gz",
    ),
)
DTD = (
    drive("1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x", "split_zhou_DescribableTextures.json"),
    archive(
        f"{OXFORD}/dtd/download/dtd-r1.0.1.tar.gz",
        "md5:fff73e5086ae6bdbea199a49dfb8a4c1",
        "images",
        under="dtd/",
    ),
)
EUROSAT = (
    drive("1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o", "split_zhou_EuroSAT.json"),
    File(
        (
            "http://madm.dfki.de/files/sentinel/EuroSAT.zip",
            f"{HUGGING_FACE}/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
        ),
        {"2750": "2750"},
        "md5:c8fa014336c82ac7804f0398fcb19387",
    ),
)
FGVC_AIRCRAFT = (
    archive(
        f"{OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
        "",
        *("variants.txt", "images_variant_train.txt", "images_variant_val.txt", "images_variant_test.txt", "images"),
        under="fgvc-aircraft-2013b/data/",
    ),
)
FOOD101 = (
    drive("1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl", "split_zhou_Food101.json"),
    archive(
        "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
        "md5:85eeb15f3717b99a5da872d97d918f87",
        "images",
        under="food-101/",
    ),
)
OXFORD_FLOWERS = (
    drive("1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT", "split_zhou_OxfordFlowers.json"),
    drive("1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0", "cat_to_name.json", optional=True),
    File((f"{OXFORD}/flowers/102/imagelabels.mat",), checksum="md5:e0620be6f572b9609742df49c70aed4d", optional=True),
    archive(f"{OXFORD}/flowers/102/102flowers.tgz", "md5:52808999861908f626f3c1f4e79d11fa", "jpg"),
)
OXFORD_PETS = (
    drive("1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs", "split_zhou_OxfordPets.json"),
    archive(
        f"{OXFORD}/pets/data/annotations.tar.gz", "md5:95a8c909bbe2e81eed6a22bccdf3f68f", "annotations", optional=True
    ),
    archive(f"{OXFORD}/pets/data/images.tar.gz", "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c", "images"),
)
STANFORD_CARS = (
    drive("1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT", "split_zhou_StanfordCars.json"),
    archive(f"{STANFORD}/cars/car_devkit.tgz", "md5:c3b158d763b6e2245038c8ad08e45376", "devkit", optional=True),
    File(
        (f"{STANFORD}/car196/cars_test_annos_withlabels.mat",),
        checksum="md5:b0a2b23655a3edd16d84508592a98d10",
        optional=True,
    ),
    archive(f"{STANFORD}/car196/cars_train.tgz", "md5:065e5b463ae28d29e77c1b4b166cfe61", "cars_train"),
    archive(f"{STANFORD}/car196/cars_test.tgz", "md5:4ce7ebf6a94d07f1952d94dd34c4d501", "cars_test"),
)
SUN397 = (
    drive("1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq", "split_zhou_SUN397.json"),
    archive(
        f"{PRINCETON}/download/Partitions.zip",
        "sha256:e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9",
        *("ClassName.txt", "Training_01.txt", "Testing_01.txt"),
        optional=True,
    ),
    archive(f"{PRINCETON}/SUN397.tar.gz", "md5:8ca2778205c41d23104230ba66911c7a", "SUN397"),
)
UCF101 = (
    drive("1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y", "split_zhou_UCF101.json"),
    archive(
        "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip",
        "",
        "ucfTrainTestlist",
        optional=True,
    ),
    # The middle frame of each video, as CoOp gives them out.
    archive("drive:10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O", "", "UCF-101-midframes", name="UCF-101-midframes.zip"),
)
IMAGENETV2 = (
    CLASSNAMES,
    archive(  # moved here from Amazon by its authors
        f"{HUGGING_FACE}/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz",
        "sha256:f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
        "imagenetv2-matched-frequency-format-val",
    ),
)
IMAGENET_SKETCH = (
    CLASSNAMES,
    File(  # both addresses are the authors'; the second cannot be resumed
        (
            f"{HUGGING_FACE}/songweig/imagenet_sketch/resolve/main/data/ImageNet-Sketch.zip",
            "drive:1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA",
        ),
        {"sketch": "images"},
    ),
)
IMAGENET_A = (CLASSNAMES, archive(f"{BERKELEY}/imagenet-a.tar", "md5:c3e55429088dc681f30d81f4726b6595", "imagenet-a"))
IMAGENET_R = (CLASSNAMES, archive(f"{BERKELEY}/imagenet-r.tar", "md5:a61312130a589d0ca1a8fca1f2bd3337", "imagenet-r"))

SOURCES: dict[str, Source] = {
    "caltech101": Source("Caltech101", 100, (4128, 1649, 2465), CALTECH101),
    "dtd": Source("DescribableTextures", 47, (2820, 1128, 1692), DTD),
    "eurosat": Source("EuroSAT", 10, (13500, 5400, 8100), EUROSAT),
    "fgvc_aircraft": Source("FGVCAircraft", 100, (3334, 3333, 3333), FGVC_AIRCRAFT),
    "food101": Source("Food101", 101, (50500, 20200, 30300), FOOD101),
    "imagenet": Source(  # validated on the test images
        "ImageNet", 1000, (1281167, 0, 50000), (CLASSNAMES,), IMAGENET_STEPS, ("images/train", "images/val")
    ),
    "oxford_flowers": Source("OxfordFlowers", 102, (4093, 1633, 2463), OXFORD_FLOWERS),
    "oxford_pets": Source("OxfordPets", 37, (2944, 736, 3669), OXFORD_PETS),
    "stanford_cars": Source("StanfordCars", 196, (6509, 1635, 8041), STANFORD_CARS, CARS_STEPS),
    "sun397": Source("SUN397", 397, (15880, 3970, 19850), SUN397),
    "ucf101": Source("UCF101", 101, (7639, 1898, 3783), UCF101),
    "imagenetv2": Source("ImageNetV2", 1000, (None, None, 10000), IMAGENETV2),
    "imagenet_sketch": Source("ImageNetSketch", 1000, (None, None, 50889), IMAGENET_SKETCH),
    "imagenet_a": Source("ImageNetA", 200, (None, None, 7500), IMAGENET_A),
    "imagenet_r": Source("ImageNetR", 200, (None, None, 30000), IMAGENET_R),
}
