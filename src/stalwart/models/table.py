"""The architectures by name."""

MODELS: dict[str, str] = {
    "lenet++": "stalwart.models.lenet:LeNetPP",
    "small-cnn": "stalwart.models.small:SmallCNN",
    "strided-cnn": "stalwart.models.small:StridedCNN",
    "pooled-cnn": "stalwart.models.small:PooledCNN",
    "buchel-cnn": "stalwart.models.small:BuchelCNN",
    "mlp": "stalwart.models.mlp:MLP",
    "dm-small": "stalwart.models.dm:DMSmall",
    "dm-medium": "stalwart.models.dm:DMMedium",
    "dm-large": "stalwart.models.dm:DMLarge",
    "cnn7-bn": "stalwart.models.dm:CNN7",
    "small-cifar": "stalwart.models.dm:SmallCifar",
    "small-mnist": "stalwart.models.dm:SmallMnist",
    "vgg5": "stalwart.models.vgg:VGG5",
    "vgg11": "stalwart.models.vgg:VGG11",
    "vgg-small": "stalwart.models.vgg:SmallVGG",
    "resnet18": "stalwart.models.resnet:ResNet18",
    "resnet20": "stalwart.models.resnet:ResNet20",
    "wrn-16-4": "stalwart.models.wrn:WRN16x4",
    "wrn-28-10": "stalwart.models.wrn:WRN28x10",
    "wrn-34-10": "stalwart.models.wrn:WRN34x10",
}
